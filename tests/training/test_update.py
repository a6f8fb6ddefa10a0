"""Epochs on one batch and the old log-probs that they compare with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from adapting import PLAIN, counting_forwards, run
from torch import Tensor

from mm_spine.policy.text import TextPolicy
from mm_spine.training import update
from mm_spine.training.loss import losses


@pytest.mark.parametrize("epochs", [1, 3])
def test_old_log_probs_cost_no_pass(monkeypatch: pytest.MonkeyPatch, epochs: int) -> None:
    """As many forwards as there are optimiser steps, and one at the end that checks the weights."""
    count, trunks = counting_forwards(monkeypatch), []
    usual = TextPolicy.trunk
    monkeypatch.setattr(TextPolicy, "trunk", lambda *args: trunks.append(1) or usual(*args))
    run(PLAIN, {"optim": {"steps": 1, "epochs": epochs}})
    assert len(count) == epochs and len(trunks) == epochs + 1


def test_every_epoch_compares_with_the_forward_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sampler's log-probs are shifted by 0.1: no epoch may see that."""
    gaps: list[float] = []
    olds: list[Tensor] = []

    def spying(trained: Any, micro: Any, old_NT: Tensor, *rest: Any) -> Any:
        chosen = trained.stats.selected_NT
        olds.append(old_NT)
        gaps.append(float((old_NT - trained.stats.logp_NT.detach())[chosen].abs().max()))
        return losses(trained, micro, old_NT, *rest)

    monkeypatch.setattr(update, "losses", spying)
    shifted = {"optim": {"steps": 1, "epochs": 2, "lr": 0.01}, "engine": {"parity_limit": 0.2}}
    _, _, records, _ = run(PLAIN, shifted, change=lambda r: replace(r, logp=r.logp - np.float32(0.1)))
    assert gaps[0] == 0.0 and gaps[1] > 0.1
    assert torch.equal(olds[0], olds[1])
    report = records[0].report
    assert report.parity_mean == pytest.approx(0.1, abs=1e-4) and report.parity_max == pytest.approx(0.1, abs=1e-3)
    assert report.ratio_clipped > 0.0


def test_one_epoch_is_never_clipped() -> None:
    assert all(record.report.ratio_clipped == 0.0 for record in run({"optim": {"lr": 0.01}})[2])


def test_weights_for_the_samplers_gap_are_those_of_its_log_probs() -> None:
    """The sampler's log-probs are 0.1 too low: each weight is exp(0.1), which a lower limit cuts everywhere."""
    one = {"optim": {"steps": 1}, "engine": {"parity_limit": 0.2}}
    shift = lambda r: replace(r, logp=r.logp - np.float32(0.1))  # noqa: E731
    plain, weighed, cut = (
        run(PLAIN, one, {"method": {"truncate": limit}}, change=shift)[2][0].report for limit in (None, 2.0, 1.05)
    )
    assert plain.ratio_truncated is None
    assert weighed.ratio_truncated == 0.0 and cut.ratio_truncated == 1.0
    assert weighed.grad_norm == pytest.approx(plain.grad_norm * np.exp(0.1), rel=1e-4)
    assert cut.grad_norm == pytest.approx(plain.grad_norm * 1.05, rel=1e-4)
