"""Votes worked by hand, order invariance, components, and the stop rule against brute force."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ties import first_of

from mm_spine.config import VotesConfig
from mm_spine.methods.rewards import majority_reward
from mm_spine.processors import answers
from mm_spine.processors.answers import known_kinds, parse, same
from mm_spine.types import Answer, AnswerSpec, Question, Rollout
from mm_spine.voting import (
    classify,
    decided,
    group_of,
    make_group,
    rank,
    subsample,
    vote,
)

INTEGER = AnswerSpec("integer")
NEAR = AnswerSpec("near")


def keyed(*keys: str | None) -> list[Answer | None]:
    return [None if key is None else Answer(key, key) for key in keys]


def unkeyed(*texts: str | None) -> list[Answer | None]:
    return [None if text is None else Answer(text, None) for text in texts]


@pytest.fixture
def near(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """A kind without keys whose equality is not transitive: numbers at most 1 apart. Returns the pairs asked."""
    asked: list[tuple[str, str]] = []

    def same(a: Answer, b: Answer, spec: AnswerSpec) -> bool:
        asked.append((a.text, b.text))
        return abs(int(a.text) - int(b.text)) <= 1

    kind = answers.KINDS["text"]
    monkeypatch.setitem(answers.KINDS, "near", replace(kind, parse=lambda r, s: Answer(r, None), same=same))
    return asked


@pytest.mark.parametrize(
    ("keys", "winner", "share", "margin", "counts"),
    [
        (["7", "7", "7", "8"], "7", 0.75, 0.5, {"7": 3, "8": 1}),
        (["8", "7", "7", "8"], first_of("7", "8"), 0.5, 0.0, {"7": 2, "8": 2}),
        (["9", "10"], first_of("9", "10"), 0.5, 0.0, {"10": 1, "9": 1}),
        ([None, None, None, "7"], "7", 0.25, 0.25, {"7": 1}),  # unparsed counts in N and never wins
        ([None, "8", None, "7", "8"], "8", 0.4, 0.2, {"8": 2, "7": 1}),
        ([None, None], None, 0.0, 0.0, {}),
        (["7"], "7", 1.0, 1.0, {"7": 1}),
    ],
)
def test_votes_by_hand(
    keys: list[str | None], winner: str | None, share: float, margin: float, counts: dict[str, int]
) -> None:
    outcome, classes = vote(keyed(*keys), INTEGER, "q")
    assert outcome.answer == winner
    assert (outcome.share, outcome.margin) == pytest.approx((share, margin))
    assert dict(outcome.counts) == counts
    assert outcome.n_parsed == sum(key is not None for key in keys)
    assert list(classes) == keys


def test_no_rollouts_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one rollout"):
        vote([], INTEGER, "q")


def test_equal_keys_are_one_class_named_by_the_shortest_then_smallest_member() -> None:
    forms = [Answer("7.0", "7"), Answer("07", "7"), Answer("+7", "7"), Answer("8", "8")]
    assert classify(forms, INTEGER) == ["+7", "+7", "+7", "8"]


def test_components_of_an_equality_that_is_not_transitive(near: list[tuple[str, str]]) -> None:
    # 10 ~ 11 ~ 12 are one class though 10 and 12 are not the same; 20 stands alone; names by length, then order.
    outcome, classes = vote(unkeyed("12", "20", "10", "11", None, "20"), NEAR, "q")
    assert classes == ("10", "20", "10", "10", None, "20")
    assert dict(outcome.counts) == {"10": 3, "20": 2}
    assert outcome.margin == pytest.approx(1 / 6)
    assert classify(unkeyed("100", "99"), NEAR) == ["99", "99"]


def test_a_late_bridge_joins_two_components(near: list[tuple[str, str]]) -> None:
    assert classify(unkeyed("1", "2", "4", "5"), NEAR) == ["1", "1", "4", "4"]
    assert classify(unkeyed("1", "2", "4", "5", "3"), NEAR) == ["1"] * 5


def test_equal_strings_are_compared_once_and_keys_never(near: list[tuple[str, str]]) -> None:
    classify(unkeyed("5", "5", "5", "9", "9"), NEAR)
    assert near == [("5", "9")]
    near.clear()
    assert classify(keyed("5", "6"), NEAR) == ["5", "6"]  # both have keys, and these differ
    assert near == []
    assert classify([Answer("5", "5"), Answer("6", None)], NEAR) == ["5", "5"]


@given(
    st.lists(st.sampled_from([None, "1", "2", "3", "5", "6", "8", "10", "12"]), min_size=1, max_size=9), st.randoms()
)
@settings(max_examples=150)
def test_the_order_of_rollouts_does_not_matter(texts: list[str | None], random: object) -> None:
    def lopsided(a: Answer, b: Answer, spec: AnswerSpec) -> bool:  # not even symmetric
        return 0 <= int(a.text) - int(b.text) <= 1 or (a.text, b.text) == ("5", "8")

    order = list(range(len(texts)))
    random.shuffle(order)  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(answers.KINDS, "near", replace(answers.KINDS["text"], same=lopsided))
        for make, spec in ((keyed, INTEGER), (unkeyed, NEAR)):
            outcome, classes = vote(make(*texts), spec, "q")
            shuffled, moved = vote(make(*(texts[i] for i in order)), spec, "q")
            assert outcome == shuffled and list(outcome.counts) == list(shuffled.counts)
            assert list(moved) == [classes[i] for i in order]


# Every kind that there is.

SPECS = {
    **{kind: AnswerSpec(kind) for kind in known_kinds()},
    "choice": AnswerSpec("choice", ("7", "9", "chest", "a heart")),
    "math_or_choice": AnswerSpec("math_or_choice", ("7", r"$\frac{\pi}{6}$", "8", "9")),
    "typed": AnswerSpec("typed", value_type="float", precision=1),
}
RESPONSES = (
    *(
        r"\boxed{7}",
        r"\boxed{7.0}",
        "The answer is 8.",
        r"\boxed{\pi/6}",
        r"\boxed{\frac{\pi}{6}}",
        r"\boxed{0.523599}",
    ),
    *(
        r"\boxed{0.5235988}",
        r"\boxed{B}",
        "The answer is (C).",
        r"\boxed{A}",
        "Yes, it is.",
        r"\boxed{no}",
        r"\boxed{maybe}",
    ),
    *(
        "Answer: chest",
        r"\boxed{Chest X-ray}",
        r"\boxed{chest xray}",
        r"\boxed{x=2,y=3}",
        r"\boxed{}",
        "",
        "I cannot tell.",
    ),
)
SAID = st.lists(st.sampled_from(RESPONSES), min_size=1, max_size=9)


def parsed(kind: str, texts: Sequence[str]) -> list[Answer | None]:
    return [parse(text, SPECS[kind]) for text in texts]


@pytest.mark.parametrize("kind", known_kinds())
@given(SAID, st.randoms())
@settings(max_examples=25)
def test_the_order_of_responses_does_not_matter_for_any_kind(kind: str, texts: list[str], random: object) -> None:
    order = list(range(len(texts)))
    random.shuffle(order)  # type: ignore[attr-defined]
    outcome, classes = vote(parsed(kind, texts), SPECS[kind], "q")
    shuffled, moved = vote(parsed(kind, [texts[i] for i in order]), SPECS[kind], "q")
    assert outcome == shuffled and list(outcome.counts) == list(shuffled.counts)
    assert list(moved) == [classes[i] for i in order]


@pytest.mark.parametrize("kind", known_kinds())
@given(SAID)
@settings(max_examples=25)
def test_classes_are_components_of_same_for_any_kind(kind: str, texts: list[str]) -> None:
    cast = parsed(kind, texts)
    outcome, classes = vote(cast, SPECS[kind], "q")
    for a, of_a in zip(cast, classes, strict=True):
        assert (a is None) == (of_a is None)
        for b, of_b in zip(cast, classes, strict=True):
            assert not (a and b and of_a != of_b and same(a, b, SPECS[kind]))
    assert set(outcome.counts) <= {answer.text for answer in cast if answer}
    assert outcome.n_parsed == sum(answer is not None for answer in cast)


@pytest.mark.parametrize("kind", known_kinds())
@given(SAID)
@settings(max_examples=25)
def test_a_tie_goes_to_the_first_by_hash_for_any_kind(kind: str, texts: list[str]) -> None:
    distinct = {
        name: text for text, name in zip(texts, vote(parsed(kind, texts), SPECS[kind], "q")[1], strict=True) if name
    }
    outcome, _ = vote(parsed(kind, [*distinct.values(), *distinct.values(), ""]), SPECS[kind], "q")
    assert outcome.answer == (first_of(*outcome.counts) if outcome.counts else None)
    assert outcome.tied == (len(outcome.counts) > 1)
    assert outcome.margin == 0 if len(outcome.counts) != 1 else outcome.share == outcome.margin


@pytest.mark.parametrize("kind", known_kinds())
@given(st.integers(1, 9))
@settings(max_examples=5)
def test_nothing_parsed_is_no_answer_for_any_kind(kind: str, n: int) -> None:
    outcome, classes = vote(parsed(kind, [""] * n), SPECS[kind], "q")
    assert outcome.answer is None and outcome.counts == {} and (outcome.share, outcome.margin) == (0, 0)
    assert outcome.n_parsed == 0 and classes == (None,) * n


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (0, 2, 1)])
def test_a_formula_joins_the_decimals_that_it_equals(order: tuple[int, ...]) -> None:
    # Real equality by machine that is not transitive: both decimals are sqrt(3)/2 to six digits, not each other.
    texts = [r"\boxed{0.866025}", r"\boxed{\frac{\sqrt{3}}{2}}", r"\boxed{0.8660254}"]
    a, b, c = parsed("math", texts)
    assert a and b and c
    assert same(a, b, SPECS["math"]) and same(b, c, SPECS["math"]) and not same(a, c, SPECS["math"])
    outcome, classes = vote(parsed("math", [texts[i] for i in order]), SPECS["math"], "q")
    assert classes == ("0.866025",) * 3 and outcome.share == 1
    assert vote([a, c], SPECS["math"], "q")[0].margin == 0


A_QUARTER = r"\frac{\pi}{12.566371}"


@pytest.mark.parametrize("other", [r"\frac14", "1/4"])
def test_an_answer_that_joins_a_class_does_not_part_it(other: str) -> None:
    # The checker holds decimals to six digits and fractions exactly; 1/4 and 0.25 have one key.
    decimal, fraction, formula = parsed("math", [rf"\boxed{{{text}}}" for text in ("0.25", other, A_QUARTER)])
    assert decimal and fraction and formula and decimal.key == fraction.key
    assert same(decimal, formula, SPECS["math"]) and not same(fraction, formula, SPECS["math"])
    for cast in ([decimal, formula, fraction], [fraction, formula, decimal]):
        assert len(set(classify(cast, SPECS["math"]))) == 1
    assert len(set(classify([fraction, formula], SPECS["math"]))) == 2


def test_a_winner_that_a_shorter_text_of_its_key_joins_late_stays() -> None:
    first, last = ["0.25"] * 4 + [A_QUARTER] * 4 + ["3"], ["1/4"] + ["3"] * 5
    cast = parsed("math", [rf"\boxed{{{text}}}" for text in (*first, *last)])
    early, before = vote(cast[: len(first)], SPECS["math"], "q")
    full, after = vote(cast, SPECS["math"], "q")
    assert decided(early.counts, len(last), keyed=False, question_id="q")
    assert [name == early.answer for name in before] == [name == full.answer for name in after[: len(first)]]
    assert (early.answer, full.answer) == ("0.25", "1/4") and full.counts == {"1/4": 9, "3": 6}


TEXTS = ["1", "2", "4", "7", "7.0", "7.00", "9"]


@given(
    st.lists(st.sampled_from([(text, keyed) for text in TEXTS for keyed in (False, True)]), min_size=2, max_size=8),
    st.integers(1, 7),
    st.sets(st.frozensets(st.sampled_from(TEXTS), min_size=2, max_size=2), max_size=5),
)
@settings(max_examples=200)
def test_classes_only_grow(cast: list[tuple[str, bool]], first: int, equal: set[frozenset[str]]) -> None:
    def any_relation(a: Answer, b: Answer, spec: AnswerSpec) -> bool:
        return a.text == b.text or frozenset((a.text, b.text)) in equal

    said = [Answer(text, str(float(text)) if keyed else None) for text, keyed in cast]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(answers.KINDS, "near", replace(answers.KINDS["text"], same=any_relation))
        few, all_of_them = classify(said[:first], NEAR), classify(said, NEAR)
    for i, j in combinations(range(len(few)), 2):
        assert few[i] != few[j] or all_of_them[i] == all_of_them[j]


# Groups.


def rollout(index: int, text: str, question_id: str = "q", weight: int = 1) -> Rollout:
    return Rollout(question_id, index, (1,), text, np.zeros(1), None, "stop", weight=weight)


QUESTION = Question("q", (), "1 + 6?", INTEGER)


def test_group_parses_and_votes() -> None:
    group = make_group(QUESTION, [rollout(0, "\\boxed{7}"), rollout(1, "7.0"), rollout(2, "dunno"), rollout(3, "8")])
    assert group.answers == ("7", "7", None, "8")
    assert [answer and answer.key for answer in group.parsed] == ["7", "7", None, "8"]
    assert (group.vote.answer, group.vote.share, group.vote.margin, group.vote.n_parsed) == ("7", 0.5, 0.25, 3)
    assert group.rewards is None and group.advantages is None


def test_equal_responses_are_read_once_and_answers_known_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    integer = answers.KINDS["integer"]
    noted = replace(integer, parse=lambda text, spec: read.append(text) or integer.parse(text, spec))
    monkeypatch.setitem(answers.KINDS, "integer", noted)
    rollouts = [rollout(0, "7"), rollout(1, "8"), rollout(2, "7")]
    group = make_group(QUESTION, rollouts)
    assert read == ["7", "8"]
    again = group_of(QUESTION, rollouts, keyed("7", "8", "7"))
    assert (again.answers, again.vote) == (group.answers, group.vote) and read == ["7", "8"]


def test_a_leaf_of_weight_three_has_three_votes() -> None:
    group = make_group(QUESTION, [rollout(0, "8"), rollout(1, "7", weight=3), rollout(2, "8"), rollout(3, "9")])
    assert group.answers == ("8", "7", "8", "9")
    assert dict(group.vote.counts) == {"7": 3, "8": 2, "9": 1}
    assert group.vote.share == 0.5


def test_a_rollout_of_another_question_is_refused() -> None:
    with pytest.raises(ValueError, match="'q'.*'other'"):
        make_group(QUESTION, [rollout(0, "7", "other")])


def test_subsample_keeps_the_first_by_index_and_the_vote_of_all() -> None:
    group = make_group(QUESTION, [rollout(2, "8"), rollout(0, "9"), rollout(3, "8"), rollout(1, "7")])
    kept = subsample(group, 2)
    assert [r.index for r in kept.rollouts] == [0, 1]
    assert kept.answers == ("9", "7")
    assert [answer and answer.text for answer in kept.parsed] == ["9", "7"]
    assert kept.vote == group.vote and kept.vote.answer == "8"
    assert [r.index for r in subsample(group, 9).rollouts] == [0, 1, 2, 3]


def test_subsample_refuses_nothing_kept_and_scored_groups() -> None:
    group = make_group(QUESTION, [rollout(0, "7")])
    with pytest.raises(ValueError, match="at least one rollout, not 0"):
        subsample(group, 0)
    with pytest.raises(ValueError, match="before rewards"):
        subsample(replace(group, rewards=torch.ones(1)), 1)


# Ties are fair, the same everywhere, and seen.


@pytest.mark.parametrize("options", ["AB", "ABCD", ("no", "yes"), ("maybe", "no", "yes")])
def test_a_tie_favours_no_label(options: Sequence[str]) -> None:
    """Votes of 8 by uniform chance: by name, A of four would win 34 %, and "no" against "yes" 64 %."""
    questions = 10_000
    draws = np.random.default_rng(0).integers(0, len(options), (questions, 8))
    won = Counter(
        next(iter(dict(rank(Counter(options[i] for i in row.tolist()), f"question {n}"))))
        for n, row in enumerate(draws)
    )
    for option in options:
        assert won[option] / questions == pytest.approx(1 / len(options), abs=0.015)


def test_ties_are_broken_alike_in_every_process() -> None:
    """Python's own hash of a string differs between processes."""
    code = "from mm_spine.voting import rank;print([rank({'A': 1, 'B': 1, 'C': 1}, f'q{n}')[0][0] for n in range(40)])"
    runs = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("0", "1")
    }
    here = [rank({"C": 1, "B": 1, "A": 1}, f"q{n}")[0][0] for n in range(40)]
    assert runs == {f"{here}\n".encode()} and set(here) == {"A", "B", "C"}


def test_an_id_with_a_lone_surrogate_can_vote() -> None:
    assert vote(keyed("7", "8"), INTEGER, "sur\ud800id")[0].tied


# Responses that were cut off.

CUT = [r"\boxed{12", r"so \boxed{12", "the area is 5 * 7 = 35.", r"\boxed{1250}"]


def cut_off(index: int, text: str) -> Rollout:
    return replace(rollout(index, text), finish_reason="length")


def test_a_response_that_was_cut_off_does_not_vote_unless_it_closed_its_answer() -> None:
    rollouts = [cut_off(i, text) for i, text in enumerate(CUT)] + [rollout(4, r"\boxed{1250}")]
    group = make_group(QUESTION, rollouts)
    assert group.answers == (None, None, None, "1250", "1250")
    assert (group.vote.answer, group.vote.share, group.vote.n_parsed) == ("1250", 0.4, 2)
    assert group.parsed[2] == Answer("35", "35")  # the grader still reads the text
    assert majority_reward(group).tolist() == [0, 0, 0, 1, 1] and group.dropped == frozenset()
    assert make_group(QUESTION, rollouts, VotesConfig(cut_off="mask")).dropped == {0, 1, 2}
    counted = make_group(QUESTION, rollouts, VotesConfig(cut_off="count"))
    assert counted.answers[2] == "35" and counted.dropped == frozenset()


@pytest.mark.parametrize(
    ("text", "closed"),
    [
        (r"\boxed{7}", True),
        (r"\fbox{7} and so", True),
        (r"It is \boxed{\frac{1}{2}}. To check, we", True),
        (r"\boxed{7", False),
        (r"\boxed{7} no, \boxed{8", False),  # it took its first answer back
        (r"\boxed{} and then 35", False),
        (r"<think>\boxed{7}</think> The area is 35 and the", False),  # the box is not in the part that is read
        ("The answer is 7. Next", False),
        ("", False),
    ],
)
def test_an_answer_is_closed_by_its_box(text: str, closed: bool) -> None:
    assert answers.closes_answer(text) is closed


def test_a_tied_group_is_dropped_where_asked() -> None:
    tied, clear = [rollout(0, "7"), rollout(1, "8")], [rollout(0, "7"), rollout(1, "7")]
    drop = VotesConfig(ties="drop")
    assert make_group(QUESTION, tied, drop).dropped == {0, 1} and make_group(QUESTION, tied).dropped == frozenset()
    assert make_group(QUESTION, clear, drop).dropped == frozenset()
    assert make_group(QUESTION, [rollout(0, ""), rollout(1, "")], drop).dropped == frozenset()  # no votes, no tie
