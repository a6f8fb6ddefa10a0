"""Where sampler and trainer disagree about the policy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapting import MIXED, PLAIN, QUESTIONS, Altered, moved, run, stopping_after
from small import Silent, digit_model, digit_policy, small_config
from tiny import tiny_processor
from torch import Tensor

from mm_spine.adapt import Hooks, StepRecord, adapt
from mm_spine.config import RunConfig
from mm_spine.policy.errors import ParityError
from mm_spine.policy.model import Policy
from mm_spine.sampling.hf import HFSampler
from mm_spine.training.checkpoint import SavedState
from mm_spine.training.parity import (
    Gap,
    ParityWatch,
    carried_by,
    gap_between,
    joined,
    mean_with_error,
    missing_with_error,
    slope_with_error,
)
from mm_spine.types import Question, Rollout, StepReport


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
    same = Altered(policy, config, lambda r: replace(r, text="1", logp=r.logp + np.float32(0.0005)))
    adapt(QUESTIONS, policy, Silent(same) if silent else same, config=config, hooks=Hooks(records.append))
    assert [r.report.tokens_trained for r in records] == [0, 0, 0]
    assert [r.report.parity_mean for r in records] == pytest.approx([0.0005] * 3, abs=1e-5)


class Apart:
    """The usual sampler on a policy of its own, which takes over nothing."""

    def __init__(self, policy: Policy, config: RunConfig, temperature: float) -> None:
        decoding = config.sampling.model_copy(update={"temperature": temperature})
        self._sampler = HFSampler(policy, decoding, config.seed)

    def sample(self, questions: Sequence[Question], n: int, **call: Any) -> list[list[Rollout]]:
        return self._sampler.sample(questions, n, **call)

    def sync(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        pass


def bf16_policy(config: RunConfig) -> Policy:
    """`digit_policy` in bfloat16."""
    return Policy(digit_model().bfloat16(), tiny_processor(), config.model, config.seed)


BF16 = {
    "method": {"name": "ttrl", "kl": "none"},
    "model": {"train": "lora"},
    "sampling": {"votes": 8, "train_rollouts": 8, "max_new_tokens": 12},
    "optim": {"steps": 7, "questions_per_step": 5, "lr": 0.01},
}


def test_rounding_in_bfloat16_stops_no_run() -> None:
    config = small_config(BF16)
    policy = bf16_policy(config)
    assert adapt(QUESTIONS, policy, config=config).steps == 7
    # Unanimous votes train nothing, and then the weights keep their version.
    assert 3 <= policy.version <= 7


def test_another_temperature_is_found_in_bfloat16_in_the_first_step() -> None:
    config = small_config(BF16, {"sampling": {"temperature": 0.7}})
    policy = bf16_policy(config)
    start = policy.weights()
    with pytest.raises(ParityError, match="step 0: "):
        adapt(QUESTIONS, policy, Apart(policy, config, 1.0), config=config)
    assert not moved(policy, start)


def test_stale_weights_without_a_version_are_found_in_bfloat16() -> None:
    config = small_config(BF16)
    with pytest.raises(ParityError, match="the sampler has not taken over|differ by"):
        adapt(QUESTIONS, bf16_policy(config), Apart(bf16_policy(config), config, 1.0), config=config)


@pytest.mark.parametrize("known", [True, False])
def test_stale_weights_that_begin_at_a_resume_are_found_by_the_first_step_of_all(
    known: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the first step's gap in the checkpoint, the first resumed step would be held against itself."""
    config = small_config(MIXED, {"optim": {"lr": 1e-6}, "checkpoint": {"every": 1}})
    adapt(QUESTIONS, digit_policy(), config=config, hooks=Hooks(checkpoints=tmp_path, should_stop=stopping_after(2)))
    if not known:
        monkeypatch.setattr(SavedState, "first_gaps", property(lambda self: {}, lambda self, value: None), False)
    records: list[StepRecord] = []
    going_on = Hooks(records.append, checkpoints=tmp_path, resume=True)
    stale = Apart(digit_policy(), config, config.sampling.temperature)
    with pytest.raises(ParityError, match=r"step 2: .* at most \d\S+ in the first step") if known else nullcontext():
        adapt(QUESTIONS, digit_policy(), stale, config=config, hooks=going_on)
    assert len(records) == (0 if known else 1)


def test_a_sampler_that_was_not_synced_is_stopped_by_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    config, policy = small_config(MIXED), digit_policy()
    monkeypatch.setattr(HFSampler, "sync", lambda self, weights: None)
    with pytest.raises(ParityError, match="step 1: the sampler drew with version 0 .* has version 1"):
        adapt(QUESTIONS, policy, config=config)


def rows(slope: float, noise: float, shift: float = 0.0, tokens: int = 500) -> Gap:
    """The gap of a trainer whose log-probs differ from the sampler's by noise, in proportion, and by a constant."""
    rng = np.random.default_rng(0)
    sampler = torch.from_numpy(-rng.exponential(0.5, tokens))
    trainer = sampler * (1 - slope) + noise * torch.from_numpy(rng.standard_normal(tokens)) - shift
    return gap_between(sampler.float(), trainer.float())


def test_the_slope_is_that_of_the_least_squares_line() -> None:
    slope, error = slope_with_error(rows(-0.3, 0.01))
    assert slope == pytest.approx(-0.3, abs=4 * error) and error < 0.002
    assert slope_with_error(Gap()) == (0.0, 0.0)
    assert joined([rows(-0.3, 0.01), rows(0.1, 0.2)]).cross == rows(-0.3, 0.01).cross + rows(0.1, 0.2).cross


def test_a_gap_of_selected_tokens_is_never_held_against_one_of_all_tokens() -> None:
    watch = ParityWatch(torch.bfloat16, None)
    watch.check(StepReport(0), rows(0.0, 0.002), "all sampled")
    watch.check(StepReport(0), rows(0.0, 0.05), "selected")
    watch.check(StepReport(1), rows(0.0, 0.06), "selected")
    with pytest.raises(ParityError, match=r"step 1: .*over all sampled tokens, by at most 0\.00\d+ in the first"):
        watch.check(StepReport(1), rows(0.0, 0.06), "all sampled")


def drawn(trainer: Tensor, sampler: Tensor, count: int = 4000) -> Gap:
    """The gap over `count` tokens drawn from one distribution and scored by another, both logits (V,)."""
    theirs, ours = sampler.log_softmax(-1), trainer.log_softmax(-1)
    token = torch.multinomial(theirs.exp(), count, replacement=True, generator=torch.Generator().manual_seed(0))
    return gap_between(theirs[token], ours[token])


LOGITS = torch.linspace(4.0, -4.0, 40)


def test_what_a_sampler_leaves_out_is_measured() -> None:
    nucleus = torch.where(LOGITS.softmax(-1).cumsum(-1) - LOGITS.softmax(-1) < 0.95, LOGITS, -torch.inf)
    kept = float(LOGITS.softmax(-1)[nucleus.isfinite()].sum())
    missing, error = missing_with_error(drawn(LOGITS, nucleus))
    assert missing == pytest.approx(1 - kept, abs=1e-5) and error < 1e-6 and kept < 0.96
    # Whatever the sampler can draw, its probabilities by the two policies have the same sum.
    other = torch.randn(40, generator=torch.Generator().manual_seed(1))
    for trainer in (LOGITS * 0.7, LOGITS + 0.1 * (LOGITS == 4.0), LOGITS + 0.2 * other):
        missing, error = missing_with_error(drawn(trainer, LOGITS))
        assert abs(missing) < 4 * error


def test_a_top_p_and_a_temperature_of_5_percent_are_found_in_the_first_step() -> None:
    nucleus = torch.where(LOGITS.softmax(-1).cumsum(-1) < 0.95, LOGITS, -torch.inf)
    with pytest.raises(ParityError, match=r"step 0: the sampler leaves out .* turn off its top-p, .*parity_limit"):
        ParityWatch(torch.bfloat16, None).check(StepReport(0), drawn(LOGITS, nucleus), "selected")
    with pytest.raises(ParityError, match=r"step 0: the gap .* \(slope 0\.0\d+, allowed are 0\.02\): .*parity_limit"):
        ParityWatch(torch.bfloat16, None).check(StepReport(0), drawn(LOGITS / 1.05, LOGITS), "selected")


def test_one_token_that_carries_the_gap_needs_a_steeper_slope() -> None:
    """Through one token goes a line of any slope."""
    sampler = -torch.linspace(0.0, 1e-3, 300)
    sampler[-1] = -8.0
    for gap, stops in ((0.3, False), (1.2, True)):
        trainer = sampler.clone()
        trainer[-1] -= gap
        one = gap_between(sampler, trainer)
        assert carried_by(one) == pytest.approx(1.0, abs=1e-3) and abs(slope_with_error(one)[0]) > 0.03
        with pytest.raises(ParityError, match=r"allowed are 0\.1") if stops else nullcontext():
            ParityWatch(torch.bfloat16, None).check(StepReport(0), one, "selected")
    assert carried_by(rows(0.1, 0.0)) > 20 and carried_by(Gap()) == 0.0


def test_the_first_gap_is_kept_also_where_a_limit_is_set() -> None:
    watch = ParityWatch(torch.bfloat16, 0.5)
    watch.check(StepReport(0), rows(0.0, 0.01), "selected")
    mean, error = mean_with_error(rows(0.0, 0.01))
    assert watch.first == {"selected": mean + 4 * error}


def test_a_limit_that_is_set_is_the_only_one() -> None:
    watch = ParityWatch(torch.bfloat16, 0.5)
    watch.check(StepReport(0), rows(-0.3, 0.01), "selected")
    with pytest.raises(ParityError, match=r"engine.parity_limit=0\.5"):
        watch.check(StepReport(0), rows(0.0, 0.01, shift=0.6), "selected")


def test_log_probs_that_are_no_numbers_end_the_run() -> None:
    with pytest.raises(ParityError, match="differ by nan nats"):
        run(PLAIN, change=lambda r: replace(r, logp=r.logp * np.float32(np.nan)))


def test_a_sampler_with_other_weights_is_found_out() -> None:
    config = small_config(PLAIN)
    with pytest.raises(ParityError, match="took over the last weights"):
        adapt(QUESTIONS, digit_policy(), HFSampler(digit_policy(model_seed=1), config.sampling), config=config)
