"""The sampling benchmark and the study of trees at tiny sizes: their figures are there and count right; no speeds."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import tiny_policy, tiny_questions

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts" / "bench"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts" / "study"))

import backend_parity
import sampling
import sampling_digits
import trees as tree_study
from drawn import drawn_tokens, logprob_gap
from sampling import GENERATE, HF, HF_TREES, NEW, PROCESS, TRL, Bench, Way
from workload import Sizes

from mm_spine.benchmarks import digits
from mm_spine.config import DecodingConfig, TreeConfig
from mm_spine.policy.model import Policy
from mm_spine.sampling.hf import HFSampler
from mm_spine.types import LabelledSet, Rollout

pytestmark = pytest.mark.slow

TINY = Sizes(image_tokens=6, rollouts=6, response_tokens=5, vocab=500, hidden=64, layers=2, questions=2)
FEW = sampling_digits.Sizes(questions=3, votes=6, least=2, roots=1, max_new_tokens=24)
NO_VLLM = {"vllm": "left out"}


@pytest.fixture(scope="module")
def bench() -> Bench:
    pytest.importorskip("trl", reason="TRL is not installed: the benchmark has nothing to stand beside (dev extra)")
    return sampling.set_up(TINY, NO_VLLM)


@pytest.fixture(scope="module")
def prompts(bench: Bench) -> dict[str, Any]:
    return sampling.measure(bench, repeats=1)


@pytest.fixture(scope="module")
def on_digits() -> dict[str, Any]:
    return sampling.measure_digits(FEW, ["hf"])


def test_the_figures_that_others_read_are_there(prompts: dict[str, Any], on_digits: dict[str, Any]) -> None:
    found = sampling.summary({TINY.vocab: prompts}, on_digits)
    wanted = {
        "speedup_vs_trl_generate", "vllm_tokens_per_second_ratio", "tree_token_ratio", "tree_mean_fork_position",
        "adaptive_token_ratio", "adaptive_same_labels", "max_logprob_gap", "bf16_differing_share",
    }  # fmt: skip
    assert wanted <= found.keys()
    assert found["vllm_tokens_per_second_ratio"] is None
    assert 0 < found["max_logprob_gap"] < 1e-4
    assert json.loads(json.dumps(found)) == found


def test_what_is_printed_names_every_way_and_why_one_is_missing(
    bench: Bench, prompts: dict[str, Any], on_digits: dict[str, Any]
) -> None:
    said = sampling.show(bench, prompts) + sampling_digits.show(on_digits, FEW)
    assert "vllm: not measured, left out" in said
    assert all(f"| {name} |" in said for name in (PROCESS, GENERATE, TRL, HF, NEW, HF_TREES))
    assert f"| hf: {sampling_digits.DECIDED} |" in said


def test_all_ways_draw_the_same_number_of_tokens_and_trees_fewer(prompts: dict[str, Any]) -> None:
    tokens = {name: way["tokens"] for name, way in prompts["ways"].items()}
    assert tokens[GENERATE] == tokens[TRL] == tokens[HF] == tokens[NEW] == 2 * 6 * 5
    assert tokens[PROCESS] == 0 < tokens[HF_TREES] < 2 * 6 * 5


def test_rates_of_unequal_tokens_are_refused() -> None:
    with pytest.raises(RuntimeError, match="59 tokens drawn, 60 by the others"):
        sampling._check_equal_tokens({GENERATE: 60, HF: 59}, TINY)


def test_trl_is_given_every_rollouts_prompt_and_image(bench: Bench) -> None:
    process = bench.ways[PROCESS]
    ready = process.draw()
    assert len(ready.prompt_ids) == 12
    assert ready.prompt_ids[0] == ready.prompt_ids[5] == bench.policy.prompt(bench.questions[0]).ids_L.tolist()
    assert len(ready.fields["pixel_values"]) == 12 * 6 * 4


def test_trls_own_generation_is_what_is_timed(bench: Bench) -> None:
    from trl.trainer.grpo_trainer import GRPOTrainer

    trainer = bench.ways[GENERATE].draw.args[0]
    assert type(trainer) is GRPOTrainer
    assert trainer.generation_config.max_new_tokens == 5 and trainer.num_generations == 6
    banned = bench.policy.model.config.image_token_id
    assert trainer.generation_config.eos_token_id == trainer.generation_config.suppress_tokens == [banned]


def test_images_are_new_to_the_policy_of_every_turn(bench: Bench) -> None:
    newcomer = bench.ways[NEW].draw.__self__
    for _ in range(2):
        newcomer.prepare()
        before = newcomer.policy.images.use()
        newcomer.draw()
        assert newcomer.policy.images.use() != before == tiny_policy().images.use()


def test_ways_take_turns_and_the_first_is_not_counted() -> None:
    calls: list[str] = []
    draws: Iterator[int] = iter(range(10, 20))
    ways = {
        "a": Way(lambda: calls.append("a") or next(draws), lambda drawn: drawn, lambda: calls.append("ready")),
        "b": Way(lambda: calls.append("b"), lambda drawn: 7),
    }
    taken, tokens = sampling.take_turns(ways, repeats=2)
    assert calls == ["ready", "a", "b"] * 3
    assert [len(times) for times in taken.values()] == [2, 2]
    assert tokens == {"a": 12, "b": 7}


def test_stopped_votes_and_trees_on_digits(on_digits: dict[str, Any]) -> None:
    found = on_digits["backends"]["hf"]
    ways = found["ways"]
    assert found["adaptive_same_labels"] == found["adaptive_tree_same_labels"] == 1.0
    assert found["adaptive_token_ratio"] <= found["adaptive_token_ratio_default_round"] <= 1
    assert ways[sampling_digits.TREES]["votes_per_question"] == ways[sampling_digits.LEAVES]["votes_per_question"] == 5
    assert ways[sampling_digits.FULL]["votes_per_question"] == 6
    assert 0 < found["tree_token_ratio_by_leaves"] < 1 and 0 <= found["tree_mean_fork_position"] < 1
    assert on_digits["differing"]["float32"] == 0 <= on_digits["differing"]["bfloat16"] <= 1


def _rollout(index: int, length: int, **fork: int) -> Rollout:
    return Rollout("q", index, tuple(range(length)), "", np.zeros(length, np.float32), None, "stop", **fork)


def test_drawn_tokens_of_a_branch_begin_at_its_fork() -> None:
    group = [_rollout(0, 10), _rollout(1, 8, parent=0, fork_at=3), _rollout(2, 6, parent=0, fork_at=0)]
    assert drawn_tokens([group, [_rollout(0, 4)]]) == 10 + 5 + 6 + 4


def test_differing_share_counts_responses() -> None:
    one = [[_rollout(0, 4), _rollout(1, 5)], [_rollout(0, 3), _rollout(1, 2)]]
    other = [[_rollout(0, 4), _rollout(1, 6)], [_rollout(0, 3), _rollout(1, 2)]]
    assert sampling_digits.differing_share(one, other) == 0.25


def test_the_log_prob_gap_is_the_largest_of_all_tokens() -> None:
    policy, questions = tiny_policy(), tiny_questions(2)
    drawn = HFSampler(policy, DecodingConfig(max_new_tokens=6)).sample(questions, 2, step=0, purpose="t")
    assert logprob_gap(policy, questions, drawn) < 1e-5
    shifted = drawn[1][1].logp.copy()
    shifted[-1] += 0.25
    drawn[1][1] = replace(drawn[1][1], logp=shifted)
    assert logprob_gap(policy, questions, drawn) == pytest.approx(0.25, abs=1e-5)


def _sampler(policy: Policy) -> HFSampler:
    return HFSampler(policy, DecodingConfig(max_new_tokens=6))


def test_greedy_responses_of_one_policy_are_the_same_and_of_two_not() -> None:
    policy, questions = tiny_policy(), tiny_questions(4)
    same, other = _sampler(tiny_policy()), _sampler(tiny_policy(seed=1))
    assert backend_parity.greedy_differences(policy, questions, _sampler(policy), same, 1e-4) == (0, 0)
    differing, unlevel = backend_parity.greedy_differences(policy, questions, _sampler(policy), other, 1e-4)
    assert differing == unlevel == 4
    assert backend_parity.greedy_differences(policy, questions, _sampler(policy), other, 1e9) == (4, 0)


def test_updates_move_the_weights_and_a_sampler_that_follows_keeps_its_gap() -> None:
    policy, questions = tiny_policy(), tiny_questions(2)
    before = policy.weights()
    assert backend_parity.gap_after_updates(policy, questions, _sampler(policy), rounds=2) < 1e-5
    assert all(not weight.equal(before[name]) for name, weight in policy.trainable().items())
    stale = _sampler(tiny_policy())
    assert backend_parity.gap_after_updates(policy, questions, stale, rounds=1) > 1e-4


@pytest.fixture(scope="module")
def seed() -> tree_study.Seed:
    whole = digits.load("adapt")
    labelled = LabelledSet(whole.questions[:3], whole.key)
    return tree_study.run_seed(Policy.load(digits.MODEL_DIR), labelled, TreeConfig(), roots=2, seed=0)


def test_the_study_votes_with_leaves_and_with_what_they_cost(seed: tree_study.Seed) -> None:
    arms = seed.arms
    assert [arms[name].votes for name in (tree_study.TREE, tree_study.FULL, tree_study.FEWER)] == [10, 10, 6]
    ratio = arms[tree_study.TREE].tokens / arms[tree_study.FULL].tokens
    assert arms[tree_study.MATCHED].votes == round(10 * ratio)
    assert arms[tree_study.TREE].tokens < arms[tree_study.FULL].tokens > arms[tree_study.FEWER].tokens
    assert all(len(arm.right) == 3 for arm in arms.values())


def test_the_studys_table_is_paired(seed: tree_study.Seed) -> None:
    def arm(*right: float) -> tree_study.Arm:
        return tree_study.Arm(4, 40.0, list(right))

    def of(trees: tree_study.Arm, full: tree_study.Arm) -> tree_study.Seed:
        return seed._replace(arms={tree_study.TREE: trees, tree_study.FULL: full})

    seeds = [of(arm(1, 1, 0), arm(1, 0, 0)), of(arm(1, 1, 1), arm(1, 0, 1))]
    full = tree_study.rows(seeds)[tree_study.FULL]
    assert full.accuracy.value == 0.5 and full.accuracy_by_seed.value == 0.5
    assert full.difference.value == pytest.approx(1 / 3)
    assert full.difference_by_seed.low == pytest.approx(full.difference_by_seed.high) == pytest.approx(1 / 3)
    assert (full.difference.low, full.difference.high) == (0.0, 1.0)


def test_the_studys_page_and_figures(seed: tree_study.Seed) -> None:
    table = tree_study.rows([seed])
    said = tree_study.markdown(table, [seed])
    assert [f"\n| {name} |" in said for name in table] == [True] * 4
    found = tree_study.figures(table, [seed])
    assert found["questions"] == 3 and 0 < found["tree_token_ratio_by_leaves"] < 1
    assert json.loads(json.dumps(found)) == found


def test_a_backend_that_runs_here_is_measured_and_one_that_is_not_there_is_named() -> None:
    assert sampling.why_not("hf") == ""
    assert "no backend sglang" in sampling.why_not("sglang")
