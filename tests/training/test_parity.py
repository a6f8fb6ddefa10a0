"""Where sampler and trainer disagree about the policy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from adapting import PLAIN, QUESTIONS, Altered, moved, run
from small import Silent, digit_policy, small_config

from mm_spine.adapt import Hooks, StepRecord, adapt
from mm_spine.sampling.hf import HFSampler
from mm_spine.training.parity import ParityError


def test_sampler_and_trainer_that_disagree_end_the_run() -> None:
    with pytest.raises(ParityError, match=r"step 0: .* differ by 0\.3 nats .*parity_limit=0\.2"):
        run(PLAIN, {"engine": {"parity_limit": 0.2}}, change=lambda r: replace(r, logp=r.logp + np.float32(0.3)))


@pytest.mark.parametrize("silent", [False, True])
def test_a_gap_is_found_before_any_weight_moves(silent: bool) -> None:
    config, policy = small_config(PLAIN), digit_policy()
    start = policy.weights()
    shift = Altered(policy, config, lambda r: replace(r, logp=r.logp + np.float32(0.02)))
    with pytest.raises(ParityError, match=r"differ by 0\.02 nats .*parity_limit=0\.01"):
        adapt(QUESTIONS, policy, Silent(shift) if silent else shift, config=config)
    assert not moved(policy, start)


@pytest.mark.parametrize("silent", [False, True])
def test_the_gap_is_measured_where_nothing_is_trained(silent: bool) -> None:
    """Unanimous votes train nothing, and still every step says how far sampler and trainer are apart."""
    config, policy, records = small_config(PLAIN), digit_policy(), list[StepRecord]()
    same = Altered(policy, config, lambda r: replace(r, text="1", logp=r.logp + np.float32(0.005)))
    adapt(QUESTIONS, policy, Silent(same) if silent else same, config=config, hooks=Hooks(records.append))
    assert [r.report.tokens_trained for r in records] == [0, 0, 0]
    assert [r.report.parity_mean for r in records] == pytest.approx([0.005] * 3, abs=1e-4)


def test_log_probs_that_are_no_numbers_end_the_run() -> None:
    with pytest.raises(ParityError, match="differ by nan nats"):
        run(PLAIN, change=lambda r: replace(r, logp=r.logp * np.float32(np.nan)))


def test_a_sampler_with_other_weights_is_found_out() -> None:
    config = small_config(PLAIN)
    with pytest.raises(ParityError, match="took over the last weights"):
        adapt(QUESTIONS, digit_policy(), HFSampler(digit_policy(model_seed=1), config.sampling), config=config)
