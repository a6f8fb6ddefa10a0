"""What the table of the parity gaps says, and that every fault is put into a step."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts" / "bench"))

import parity_limits
from parity_limits import HEALTHY, Found, Run, caught, earlier, first_gaps, load, measure_all, table

from mm_spine.policy.distribution import Distribution
from mm_spine.training.parity import Gap, gap_between

RUN = Run("digits", "bfloat16", "lora", "ttrl", 0)


def apart(nats: float) -> Gap:
    """Every second token is `nats` likelier to the trainer, the others as much less likely."""
    sampler = -torch.linspace(0.1, 2.0, 1000)
    return gap_between(sampler, sampler + nats * torch.tensor([1.0, -1.0]).repeat(500))


def test_a_fault_is_judged_as_in_the_step_in_which_it_would_be_seen() -> None:
    found = [
        Found(RUN, HEALTHY, 0, "selected", apart(0.002)),
        Found(RUN, HEALTHY, 1, "selected", apart(0.003)),
        Found(RUN, "stale by 1", 1, "selected", apart(0.02)),
        Found(RUN, "temperature x 1.1", 1, "selected", apart(0.02)),
    ]
    firsts = first_gaps(found)
    assert [earlier(each, firsts) is None for each in found] == [True, False, False, True]
    assert [caught(each, earlier(each, firsts)) for each in found] == [False, False, True, False]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table(found).splitlines()[2:]]
    assert [(row[1], row[-2], row[-1]) for row in rows] == [
        ("none", "0 of 2", "0 of 0"),
        ("stale by 1, lora", "1 of 1", "0 of 0"),
        ("temperature x 1.1", "0 of 1", "0 of 0"),
    ]
    assert rows[0][2] == "0.003 (0.002 to 0.003)"


def test_the_wrong_distributions_are_what_they_are_called() -> None:
    logits = torch.tensor([[3.0, 2.0, -5.0, 1.0]])
    usual = Distribution(0.7).log_probs(logits)
    cut = parity_limits.Nucleus(0.7).log_probs(logits)
    assert cut.isinf().tolist() == [[False, False, True, True]] and float(cut.exp().sum()) == pytest.approx(1.0)
    biased = parity_limits.Biased(0.7, token=1).log_probs(logits)
    assert (biased - usual)[0, 1] - (biased - usual)[0, 0] == pytest.approx(0.1 / 0.7, abs=1e-5)


@pytest.mark.slow
def test_a_run_gives_the_gaps_of_its_steps_and_of_every_fault(tmp_path: Path) -> None:
    path = tmp_path / "gaps.jsonl"
    run = Run("qwen3_vl", "float32", "lora", "ttrl", 0)
    measure_all([run], path)
    found = load(path)
    assert [each.step for each in found if each.fault == HEALTHY] == list(range(7))
    assert all(each.gap.total < 1e-4 * each.gap.tokens for each in found if each.fault == HEALTHY)
    wrong = {each.fault: each for each in found if each.fault != HEALTHY}
    assert len(wrong) == 7 and all(each.gap.total > 1e-4 * each.gap.tokens for each in wrong.values())
    assert all(caught(wrong[f"temperature x {factor}"], None) for factor in (0.7, 1.1)) and caught(
        wrong["top-p 0.95"], None
    )
    measure_all([run], path)
    assert load(path) == found
