"""The step benchmark at tiny sizes: its figures are there and its variants compute the same gradient; no speeds."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts" / "bench"))

import flop_counts
import timing
import workload
from workload import Sizes

pytestmark = pytest.mark.slow

TINY = Sizes(image_tokens=6, rollouts=4, response_tokens=10, vocab=500, hidden=64, layers=2, questions=2)


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    pytest.importorskip("trl", reason="TRL is not installed: the benchmark has nothing to stand beside (dev extra)")
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("peak memory is read from /proc, which is not here")
    import step

    return step.measure(step.set_up(TINY, torch.device("cpu")), repeats=1)


def test_the_figures_that_others_read_are_there(figures: dict[str, Any]) -> None:
    wanted = {
        "speedup_vs_trl", "speedup_vs_trl_cold", "speedup_vs_plain", "max_relative_gradient_error",
        "peak_memory_ratio_vs_trl", "seconds", "flops_counted", "flops_needed",
    }  # fmt: skip
    assert wanted <= figures.keys()
    assert all(figures[name] > 0 for name in wanted)
    assert json.loads(json.dumps(figures)) == figures


def test_every_variant_has_the_plain_gradient(figures: dict[str, Any]) -> None:
    errors = figures["relative_gradient_errors"]
    assert len(errors) == 6 and "TRL GRPOTrainer" in errors
    assert errors["plain transformers"] == 0 < figures["max_relative_gradient_error"] < 1e-5
    assert max(errors.values()) < 1e-5, errors


def test_each_measure_takes_work_away(figures: dict[str, Any]) -> None:
    counted = [figures["variants"][name]["flops"] for name in figures["relative_gradient_errors"]]
    by_name = dict(zip(figures["relative_gradient_errors"], counted, strict=True))
    by_name.pop("TRL GRPOTrainer")
    assert list(by_name.values()) == sorted(by_name.values(), reverse=True)
    work = {name: row["flops"] for name, row in figures["variants"].items()}
    assert work["each response twice, merged"] < 0.8 * work["each response twice, kept apart"]
    assert work["half the groups unanimous, skipped"] < 0.6 * work["half the groups unanimous, kept"]


def test_counted_attention_on_the_cpu_is_that_of_its_pairs() -> None:
    q, k, v = (torch.randn(2, 3, 8, 16, requires_grad=True) for _ in range(3))
    attend = torch.nn.functional.scaled_dot_product_attention
    one_pair = 2 * 2 * 3 * 16
    assert flop_counts.counted(lambda: attend(q, k, v)) == 2 * one_pair * 64
    assert flop_counts.counted(lambda: attend(q, k, v, is_causal=True)) == 2 * one_pair * 36
    assert flop_counts.counted(lambda: attend(q, k, v).sum().backward()) == 7 * one_pair * 64


def test_needed_work_of_a_step_counted_by_hand() -> None:
    sizes = Sizes(image_tokens=4, rollouts=2, response_tokens=5, vocab=500, hidden=64, layers=3, selected=0.2)
    work = workload.make_work(sizes, options_of(sizes))
    last = [int(tokens.policy_T.nonzero()) for tokens in work.tokens[0]]
    assert all(last), "another seed: no response of this one may have its first token selected"
    keys, rest = 2 * 64 * 2 * 16, 2 * 64 * 64 + 3 * 64 * 344
    tokens, pairs = 10 + sum(last), 55 + sum(10 * n + n * (n + 1) / 2 for n in last)
    trunk = 3 * keys * tokens + rest * (2 * tokens + 2)
    attention = 14 * 64 * (2 * pairs + sum(10 + n for n in last))
    assert flop_counts.needed(sizes, work, prompt_tokens=10) == (6 * trunk, attention, 6 * 64 * 500 * 2)


def options_of(sizes: Sizes) -> Any:
    from mm_spine.config import MethodConfig

    return MethodConfig(share=sizes.selected, eps=workload.STD_EPS)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="no /proc here")
def test_peak_memory_sees_what_was_freed_before_the_end() -> None:
    def touch() -> None:
        large = torch.ones(25, 2**20)
        del large

    found = timing.peak_memory(touch, torch.device("cpu"))
    assert found == pytest.approx(100 * 2**20, rel=0.05)


@pytest.mark.parametrize(("hidden", "layers"), [(64, 2), (256, 4), (2048, 36)])
def test_the_tower_costs_nine_tenths_of_the_text_model(hidden: int, layers: int) -> None:
    sizes = Sizes(hidden=hidden, layers=layers)
    tower = workload.fit_tower(sizes)
    share = tower.flops(1024, hidden) / workload.text_flops(sizes, 1024)
    assert share == pytest.approx(0.9, abs=0.02)
    assert tower.depth <= layers and tower.intermediate > tower.hidden


def test_images_have_the_tokens_asked_for_and_are_as_square_as_possible() -> None:
    assert [Sizes(image_tokens=n).grid for n in (1024, 1000, 256, 7)] == [(32, 32), (25, 40), (16, 16), (1, 7)]
    (question,) = workload.make_questions(Sizes(image_tokens=6))
    assert question.images[0].size == (84, 56)
