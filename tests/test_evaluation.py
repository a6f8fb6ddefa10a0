from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import log
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mm_spine import evaluation, voting
from mm_spine.config import VotesConfig
from mm_spine.evaluation import Item
from mm_spine.evaluation.vote_accuracy import step_accuracy
from mm_spine.files.rollout_table import write_rollouts
from mm_spine.types import Answer, AnswerSpec, Question, Rollout, Verdict
from mm_spine.voting import make_group, subsample

LOST = "I cannot read it."


def box(number: int) -> str:
    return rf"So it is \boxed{{{number}}}."


def ask(*ids: str) -> list[Question]:
    return [Question(id, (), "Which number?", AnswerSpec("integer")) for id in ids]


class Script:
    """A sampler that reads its lines: id -> (greedy text, sampled texts); length = len(text), entropy 0.5 per token."""

    def __init__(self, lines: Mapping[str, tuple[str, Sequence[str]]], entropy: bool = True) -> None:
        self.lines = lines
        self.entropy = entropy
        self.calls: list[tuple[tuple[str, ...], int, int, str, bool]] = []

    def sample(
        self, questions: Sequence[Question], n: int, *, step: int, purpose: str, greedy: bool = False
    ) -> list[list[Rollout]]:
        self.calls.append((tuple(q.id for q in questions), n, step, purpose, greedy))
        return [
            [rollout(question.id, i, text, self.entropy) for i, text in enumerate(self._said(question.id, greedy))]
            for question in questions
        ]

    def _said(self, name: str, greedy: bool) -> Sequence[str]:
        first, sampled = self.lines.get(name, (None, ()))
        return sampled if not greedy else () if first is None else (first,)

    def sync(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        raise AssertionError("an evaluation changes no weights")


def rollout(question_id: str, index: int, text: str, entropy: bool = True) -> Rollout:
    values = np.full(len(text), 0.5, dtype=np.float32)
    return Rollout(question_id, index, tuple(range(len(text))), text, -values, values if entropy else None, "stop")


SCRIPT = {
    "a": (box(7), (box(7), box(1), LOST, box(7))),
    "b": (box(5), (box(5), box(3), box(5), box(4))),
    "c": (LOST, (LOST, LOST, LOST, LOST)),
}
KEY = {"a": ("7",), "b": ("3",), "c": ("9",)}


@pytest.fixture
def items() -> list[Item]:
    return evaluation.evaluate(ask("a", "b", "c"), KEY, Script(SCRIPT), samples=4, split="adapted")


def test_each_question_by_hand(items: list[Item]) -> None:
    assert [evaluation.greedy_score(item) for item in items] == [1.0, 0.0, 0.0]
    assert [evaluation.pass_at_1(item) for item in items] == [0.5, 0.25, 0.0]
    assert [evaluation.maj_at_n(item) for item in items] == [1.0, 0.0, 0.0]
    assert [evaluation.pass_at_n(item) for item in items] == [1.0, 1.0, 0.0]
    assert [item.vote and item.vote.text for item in items] == ["7", "5", None]
    assert items[0].classes == ("7", "1", None, "7")
    assert items[0].unparsed == (False, False, True, False)
    assert items[0].lengths == (len(box(7)), len(box(1)), len(LOST), len(box(7)))
    assert items[0].entropies == (0.5,) * 4
    assert items[0].verdicts is not None
    assert [verdict.correct for verdict in items[0].verdicts] == [True, False, False, True]


def test_the_metrics_block_by_hand(items: list[Item]) -> None:
    block = evaluation.metrics(items)
    expected = {
        "greedy": 1 / 3, "pass_at_1": 0.25, "maj_at_n": 1 / 3, "pass_at_n": 2 / 3, "unparsed": 5 / 12,
        "mean_entropy": 0.5, "mean_length": (7 * len(box(7)) + 5 * len(LOST)) / 12, "n": 3, "n_labelled": 3,
        # Entropy of 2 : 1 : 1 with the unparsed sample, of 2 : 1 : 1, and of no answer at all.
        "answer_entropy": 2 / 3 * (log(4) - log(2) / 2), "distinct_answers": 5 / 3,
    }  # fmt: skip
    assert {name: block[name] for name in expected} == pytest.approx(expected)
    assert block["pass_at_k"] == pytest.approx([0.25, (5 / 6 + 1 / 2) / 3, (1 + 3 / 4) / 3, 2 / 3])
    for name in ("greedy", "pass_at_1", "maj_at_n"):
        low, high = block[f"{name}_ci95"]
        assert low <= block[name] <= high
    assert block["pass_at_1_ci95"] == [0.0, 0.5]  # of 27 resamples, 1/27 > 2.5 % are all "c", and all "a"
    assert set(block) - set(expected) == {"greedy_ci95", "pass_at_1_ci95", "maj_at_n_ci95", "pass_at_k"}
    json.dumps(block, allow_nan=False)


def test_scores_between_0_and_1_are_averaged_not_rounded(items: list[Item]) -> None:
    scores = (0.3, 0.9, 0.0, 0.6)
    item = replace(items[0], verdicts=tuple(Verdict(score, score > 0.5, "") for score in scores), vote_score=0.6)
    assert evaluation.pass_at_1(item) == pytest.approx(0.45)
    assert (evaluation.maj_at_n(item), evaluation.pass_at_n(item)) == (0.6, 0.9)


def test_mean_entropy_is_over_tokens(items: list[Item]) -> None:
    item = replace(items[0], lengths=(1, 3, 5, 0), entropies=(2.0, 1.0, None, None))
    assert evaluation.label_free_metrics([item])["mean_entropy"] == pytest.approx(5 / 4)


def test_samplers_without_entropies_and_empty_responses() -> None:
    script = Script({"a": ("", ("", box(7)))}, entropy=False)
    (item,) = evaluation.evaluate(ask("a"), KEY, script, samples=2, split="adapted")
    assert item.entropies == (None, None)
    block = evaluation.metrics([item])
    assert (block["mean_entropy"], block["pass_at_1"], block["greedy"]) == (None, 0.5, 0.0)
    assert block["pass_at_1_ci95"] == [0.5, 0.5]


def test_the_sampler_is_asked_for_the_same_draws_each_time() -> None:
    script = Script(SCRIPT)
    for _ in range(2):
        evaluation.evaluate(ask("a", "b"), KEY, script, samples=4, split="adapted")
    assert script.calls == [(("a", "b"), 1, 0, "evaluate", True), (("a", "b"), 4, 0, "evaluate", False)] * 2


def test_many_questions_are_sampled_in_chunks(monkeypatch: pytest.MonkeyPatch, items: list[Item]) -> None:
    monkeypatch.setattr(evaluation, "CHUNK", 2)
    script = Script(SCRIPT)
    assert evaluation.evaluate(ask("a", "b", "c"), KEY, script, samples=4, split="adapted") == items
    assert [call[0] for call in script.calls] == [("a", "b"), ("a", "b"), ("c",), ("c",)]


def test_label_free_figures_need_no_key(items: list[Item]) -> None:
    blind = evaluation.evaluate(ask("a", "b", "c"), {}, Script(SCRIPT), samples=4, split="adapted")
    without = {"greedy": None, "verdicts": None, "vote_score": None}
    assert blind == [replace(item, **without) for item in items]
    block = evaluation.metrics(blind)
    names = ("mean_length", "mean_entropy", "answer_entropy", "distinct_answers", "unparsed", "n")
    assert {name: block[name] for name in names} == evaluation.label_free_metrics(items)
    scores = [name for name in block if name.startswith(("greedy", "pass", "maj"))]
    assert len(scores) == 8 and all(block[name] is None for name in scores)
    assert block["n_labelled"] == 0


def test_scores_are_over_the_labelled_questions_only() -> None:
    some = evaluation.evaluate(ask("a", "b", "c"), {"a": ("7",)}, Script(SCRIPT), samples=4, split="adapted")
    block = evaluation.metrics(some)
    assert (block["pass_at_1"], block["greedy"], block["n"], block["n_labelled"]) == (0.5, 1.0, 3, 1)


def test_the_vote_is_graded_through_its_shortest_answer_whatever_the_order() -> None:
    answers = (Answer("bb", None), None, Answer("c", None), Answer("b", None), Answer("aa", None))
    classes = ("b", None, "c", "b", "b")
    for order in (slice(None), slice(None, None, -1)):
        assert voting.representative(answers[order], classes[order], "b") == Answer("b", None)
    assert voting.representative(answers, classes, None) is None


@pytest.mark.parametrize("item", [0, 2])
def test_items_survive_json(items: list[Item], item: int) -> None:
    blind = replace(items[item], verdicts=None, greedy=None, vote_score=None, entropies=(None,) * 4)
    for each in (items[item], blind):
        row = evaluation.to_json(each)
        assert evaluation.from_json(json.loads(json.dumps(row, allow_nan=False))) == each
    row = evaluation.to_json(items[0])
    assert row["verdicts"][1]["correct"] is False and set(row["verdicts"][1]) == {"score", "correct", "why"}
    assert row["answers"][2] is None and row["answers"][0] == {"text": "7", "key": "7"}


def test_a_row_of_another_version_is_refused(items: list[Item]) -> None:
    row = evaluation.to_json(items[0])
    del row["vote"]
    with pytest.raises(ValueError, match=r"item 'a'.*\['vote'\]"):
        evaluation.from_json(row)


def test_a_question_that_could_not_be_asked_is_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        items = evaluation.evaluate(ask("a", "gone"), KEY, Script(SCRIPT), samples=4, split="adapted")
    assert [item.id for item in items] == ["a"]
    assert "'gone'" in caplog.text
    with pytest.raises(ValueError, match="nothing was evaluated"):
        evaluation.metrics([])


def test_bad_requests_stop_before_sampling() -> None:
    script = Script(SCRIPT)
    with pytest.raises(ValueError, match="samples is 0"):
        evaluation.evaluate(ask("a"), KEY, script, samples=0, split="adapted")
    with pytest.raises(ValueError, match="question 'b'.*seven"):
        evaluation.evaluate(ask("a", "b"), {"b": ("seven",)}, script, samples=4, split="adapted")
    assert script.calls == []
    with pytest.raises(ValueError, match="question 'a': the sampler gave 1 greedy and 4 sampled"):
        evaluation.evaluate(ask("a"), KEY, script, samples=5, split="adapted")


def test_the_bootstrap_covers_the_mean_about_95_times_in_100() -> None:
    rng = np.random.default_rng(3)
    samples = (rng.random((400, 60)) < 0.3).astype(float)
    intervals = [evaluation.bootstrap_ci(sample, draws=500) for sample in samples]
    covered = np.mean([low <= 0.3 <= high for low, high in intervals])
    assert 0.90 <= covered <= 0.98


def test_the_bootstrap_width_is_that_of_the_normal_interval() -> None:
    values = np.random.default_rng(0).normal(size=400)
    low, high = evaluation.bootstrap_ci(values)
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.06)
    assert low < values.mean() < high


def test_the_bootstrap_interval_is_the_percentile_one() -> None:
    values = np.random.default_rng(2).exponential(size=12) ** 2  # skewed: the basic interval is its mirror image
    draws = np.random.default_rng(9).integers(12, size=(20000, 12))
    direct = np.quantile(values[draws].mean(1), (0.025, 0.975))
    mirrored = 2 * values.mean() - direct[::-1]
    np.testing.assert_allclose(evaluation.bootstrap_ci(values, draws=20000), direct, rtol=0.03)
    assert np.abs(direct / mirrored - 1).min() > 0.1


def test_the_bootstrap_is_repeatable_and_leaves_global_state_alone() -> None:
    values = np.random.default_rng(0).random(10)
    before = np.random.get_state()[1].copy()
    assert evaluation.bootstrap_ci(values) == evaluation.bootstrap_ci(values)
    assert evaluation.bootstrap_ci(values) != evaluation.bootstrap_ci(values, seed=1)
    np.testing.assert_array_equal(np.random.get_state()[1], before)
    assert evaluation.bootstrap_ci([0.25]) == (0.25, 0.25)
    assert evaluation.bootstrap_ci(np.ones(5)) == (1.0, 1.0)
    with pytest.raises(ValueError, match="no values"):
        evaluation.bootstrap_ci([])


def scored(name: str, score: float, split: str = "adapted") -> Item:
    verdict = Verdict(score, score > 0.5, "")
    return Item(name, split, "", verdict, ("",), (None,), (None,), (verdict,), None, score, (1,), (None,), (True,))


def test_the_breakdown_by_tag_by_hand() -> None:
    items = [scored("a", 1.0), scored("b", 0.5), scored("c", 0.0)]
    unlabelled = replace(scored("d", 0.0), greedy=None, verdicts=None, vote_score=None)
    tags = {
        "a": {"type": "open"},
        "b": {"type": "open", "site": "lung"},
        "c": {"type": "closed"},
        "d": {"type": "open"},
    }
    table = evaluation.breakdown([*items, unlabelled], tags, ("type", "site", "unknown"))
    assert list(table) == ["type", "site"] and list(table["type"]) == ["closed", "open"]
    assert table["type"]["open"] == {"n": 2, "greedy": 0.75, "pass_at_1": 0.75, "maj_at_n": 0.75, "pass_at_n": 0.75}
    assert table["type"]["closed"]["n"] == 1 and table["type"]["closed"]["greedy"] == 0.0
    assert table["site"] == {"lung": {"n": 1, "greedy": 0.5, "pass_at_1": 0.5, "maj_at_n": 0.5, "pass_at_n": 0.5}}


def test_the_oracle_rewards_the_truth_and_says_so() -> None:
    (question,) = ask("b")
    group = make_group(question, [rollout("b", i, text) for i, text in enumerate((*SCRIPT["b"][1], LOST))])
    oracle = evaluation.oracle_reward(KEY)
    assert oracle.label_free is False  # type: ignore[attr-defined]
    reward = oracle(group)
    assert reward.dtype == torch.float32
    assert reward.tolist() == [0.0, 1.0, 0.0, 0.0, 0.0]
    with pytest.raises(ValueError, match="question 'b' has no gold answer"):
        evaluation.oracle_reward({})(group)


def test_a_response_that_was_cut_off_is_graded_but_does_not_vote() -> None:
    (question,) = ask("a")
    said = ("It is 7 + 5, so 12", "It is 7 + 5, so 12", box(7), "So 7")
    drawn = [rollout("a", i, text) for i, text in enumerate(said)]
    cut = [replace(r, finish_reason="length") if i < 2 else r for i, r in enumerate(drawn)]

    class Cut(Script):
        def sample(self, questions: Sequence[Question], n: int, *, greedy: bool = False, **how: object) -> object:
            return [cut[:1] if greedy else cut]

    found = {}
    for rule in ("abstain", "mask", "count"):
        rules = VotesConfig(cut_off=rule)
        (item,) = evaluation.evaluate([question], {"a": ("12",)}, Cut({}), samples=4, split="adapted", rules=rules)
        found[rule] = (item.vote and item.vote.text, item.vote_score, evaluation.pass_at_1(item), item.classes)
        assert item.unparsed == (False,) * 4 and item.greedy is not None and item.greedy.correct
    assert found["abstain"] == found["mask"] == ("7", 0.0, 0.5, (None, None, "7", "7"))
    assert found["count"][2:] == (0.5, ("12", "12", "7", "7"))
    group = make_group(question, cut)
    assert evaluation.oracle_reward({"a": ("12",)})(group).tolist() == [0.0] * 4  # as a response without an answer


STEP = {
    "a": (box(7), box(7), box(1), LOST),  # vote 7, right
    "b": (box(5), box(5), box(3), LOST),  # vote 5, wrong
    "c": (LOST, LOST, LOST, LOST),  # no vote
}


def save_step(folder: Path, step: int, texts: Mapping[str, Sequence[str]]) -> None:
    groups = [make_group(q, [rollout(q.id, i, t) for i, t in enumerate(texts[q.id])]) for q in ask(*texts)]
    write_rollouts(folder / f"step_{step:06d}.parquet", groups, step)


def test_step_accuracy_by_hand(tmp_path: Path) -> None:
    for step in (10, 9):
        save_step(tmp_path, step, STEP if step == 9 else {"a": STEP["a"]})
    first, second = step_accuracy(tmp_path, ask("a", "b", "c"), KEY)
    assert first == pytest.approx(
        {
            "step": 9, "questions": 3, "label_accuracy": 1 / 3, "reward_accuracy": (1 + 1 / 4 + 1) / 3,
            "pass_at_n": 2 / 3, "ground_truth_ratio": (2 + 1 + 0) / 12, "majority_ratio": (2 + 2 + 0) / 12,
        }
    )  # fmt: skip
    assert (second["step"], second["label_accuracy"], second["reward_accuracy"]) == (10, 1.0, 1.0)


def test_step_accuracy_of_partly_and_of_not_labelled_questions(tmp_path: Path) -> None:
    save_step(tmp_path, 1, STEP)
    (row,) = step_accuracy(tmp_path, ask("a", "b", "c"), {"b": ("3",)})
    assert (row["label_accuracy"], row["ground_truth_ratio"], row["majority_ratio"]) == (0.0, 0.25, 1 / 3)
    (row,) = step_accuracy(tmp_path, ask("a", "b", "c"), {})
    assert (row["label_accuracy"], row["pass_at_n"], row["majority_ratio"]) == (None, None, 1 / 3)


def test_the_vote_is_never_parsed_as_a_bare_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_step(tmp_path, 1, STEP)
    whole = evaluation.parse
    monkeypatch.setattr(evaluation, "parse", lambda text, spec: whole(text, spec) if "boxed" in text else None)
    (row,) = step_accuracy(tmp_path, ask("a", "b", "c"), KEY)
    assert row["label_accuracy"] == pytest.approx(1 / 3)


def test_a_vote_that_no_kept_rollout_gave_is_still_graded(tmp_path: Path) -> None:
    (question,) = ask("a")
    group = make_group(question, [rollout("a", i, text) for i, text in enumerate((box(7), box(7), box(1)))])
    kept = replace(group, rollouts=group.rollouts[2:], answers=group.answers[2:], parsed=group.parsed[2:])
    assert subsample(group, 1).vote == group.vote  # the vote is of all, whatever is kept
    write_rollouts(tmp_path / "step_1.parquet", [kept], 1)
    (row,) = step_accuracy(tmp_path, [question], KEY)
    assert (row["label_accuracy"], row["reward_accuracy"], row["majority_ratio"]) == (1.0, 1.0, 0.0)


def test_steps_come_in_order(tmp_path: Path) -> None:
    for step in (3, 11, 0, 7, 5, 1, 10, 4):
        save_step(tmp_path, step, {"a": STEP["a"]})
    rows = step_accuracy(tmp_path, ask("a"), KEY)
    assert [row["step"] for row in rows] == [0, 1, 3, 4, 5, 7, 10, 11]


def test_step_accuracy_names_an_unknown_question(tmp_path: Path) -> None:
    save_step(tmp_path, 4, {"a": STEP["a"]})
    with pytest.raises(ValueError, match=r"step_000004.parquet: question 'a' is not among the 1 questions"):
        step_accuracy(tmp_path, ask("b"), KEY)
    assert step_accuracy(tmp_path / "absent", ask("b"), KEY) == []
