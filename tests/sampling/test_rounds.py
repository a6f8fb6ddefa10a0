"""Votes in rounds: the first rollouts of the full vote, the same winner, and what stopping early spared."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import digit_policy, small_config
from tiny import tiny_questions

from mm_spine.adapt import Hooks, StepRecord, adapt
from mm_spine.config import TreeConfig, VotesConfig
from mm_spine.methods.tokens import Tokens
from mm_spine.processors import answers
from mm_spine.processors.answers import known_kinds
from mm_spine.sampling import rounds
from mm_spine.sampling.hf import HFSampler
from mm_spine.sampling.rounds import STOPS, round_ends, vote_in_rounds
from mm_spine.sampling.tree import TreeSampler
from mm_spine.training import step_report
from mm_spine.types import Answer, AnswerSpec, Group, Question, Rollout, StepReport
from mm_spine.voting import make_group, tie_order, vote

HOW: dict[str, Any] = {"step": 3, "purpose": "train"}


class Scripted:
    """A sampler whose rollout i of a question says the i-th of its texts, i + 1 tokens long. Notes every call.

    The rollouts of the indices in `cut` ended for want of room.
    """

    def __init__(self, said: dict[str, Sequence[str]], cut: Collection[int] = ()) -> None:
        self.said, self.cut = said, cut
        self.calls: list[tuple[list[str], int, int]] = []

    def sample(self, questions: Sequence[Question], n: int, *, first: int = 0, **how: Any) -> list[list[Rollout]]:
        assert how == HOW
        self.calls.append(([q.id for q in questions], n, first))
        return [[self._rollout(q.id, i) for i in range(first, first + n)] if self.said[q.id] else [] for q in questions]

    def _rollout(self, name: str, i: int) -> Rollout:
        reason = "length" if i in self.cut else "stop"
        return Rollout(name, i, (1,) * (i + 1), self.said[name][i], np.zeros(i + 1, np.float32), None, reason)


def asked(sampler: Any, votes: VotesConfig, least: int = 1, kind: str = "integer") -> list[Group]:
    questions = [Question(name, (), "?", AnswerSpec(kind)) for name in sampler.said]
    return vote_in_rounds(sampler, questions, votes, least, **HOW)


def in_tie_order(question_id: str, *names: str) -> list[str]:
    return sorted(names, key=lambda name: tie_order(question_id, name))


def same_group(a: Group, b: Group) -> bool:
    indices = [[rollout.index for rollout in group.rollouts] for group in (a, b)]
    return indices[0] == indices[1] and (a.question, a.answers, a.vote) == (b.question, b.answers, b.vote)


# Rounds.


def test_without_a_rule_there_is_one_call() -> None:
    sampler = Scripted({"a": ["7"] * 8, "b": ["8"] * 8})
    groups = asked(sampler, VotesConfig(max=8))
    assert sampler.calls == [(["a", "b"], 8, 0)]
    assert [len(group.rollouts) for group in groups] == [8, 8]


def test_open_questions_alone_are_asked_again_and_indices_go_on() -> None:
    first, last = in_tie_order("open", "7", "8")
    said = {"sure": ["7"] * 8, "late": ["7", "8", "7", "8", "8", "8", "8", "7"], "open": [last, first] * 4}
    sampler = Scripted(said)
    groups = asked(sampler, VotesConfig(max=8, stop="decided", round=2))
    # 4 of 8 decide nothing even if all agree: a class not yet seen could win a tie with "7".
    assert sampler.calls == [(["sure", "late", "open"], 5, 0), (["late", "open"], 2, 5), (["open"], 1, 7)]
    assert [[r.index for r in g.rollouts] for g in groups] == [list(range(5)), list(range(7)), list(range(8))]
    assert [(g.question.id, g.vote.answer) for g in groups] == [("sure", "7"), ("late", "8"), ("open", first)]


@pytest.mark.parametrize(
    ("votes", "least", "whole", "ends"),
    [
        ({"max": 16, "stop": "never", "round": 4}, 2, 5, [16]),
        ({"max": 16, "round": 4}, 2, 1, [9, 13, 16]),  # 8 of 16 decide nothing
        ({"max": 16, "round": 4}, 11, 1, [11, 15, 16]),  # never fewer than are trained on
        ({"max": 16, "round": 4}, 16, 1, [16]),
        ({"max": 3, "round": 4}, 1, 1, [3]),
        ({"max": 17, "round": 2, "stop": "confident", "level": 0.95}, 1, 1, [4, 6, 8, 10, 12, 14, 16, 17]),
        ({"max": 16, "round": 4, "stop": "confident", "level": 0.5}, 1, 1, [4, 8, 12, 16]),
        ({"max": 16, "round": 4, "stop": "confident", "level": 0.999999}, 1, 1, [16]),
        ({"max": 64, "round": 4}, 16, 5, [35, 40, 45, 50, 55, 60, 64]),  # whole trees, then what is left
        ({"max": 60, "round": 7}, 1, 5, [35, 45, 55, 60]),
        ({"max": 4, "round": 1}, 1, 5, [4]),
    ],
)
def test_rounds_end_where_they_should(votes: dict[str, Any], least: int, whole: int, ends: list[int]) -> None:
    assert round_ends(VotesConfig(**{"stop": "decided", **votes}), least, whole) == ends


@given(st.integers(2, 70), st.integers(1, 20), st.integers(1, 70), st.integers(1, 9))
def test_rounds_grow_to_the_last_vote_by_whole_trees(most: int, size: int, least: int, whole: int) -> None:
    least = min(least, most)
    ends = round_ends(VotesConfig(max=most, stop="decided", round=size), least, whole)
    assert ends[-1] == most and ends[0] >= min(max(least, size), most)
    assert all(a < b for a, b in pairwise(ends))
    assert all(end % whole == 0 for end in ends[:-1])


def test_a_question_that_cannot_be_asked_is_left_out_and_not_asked_again() -> None:
    a, b = in_tie_order("a", "7", "8"), in_tie_order("b", "7", "8")
    sampler = Scripted({"a": a * 2, "mute": [], "b": b[::-1] * 2})
    groups = asked(sampler, VotesConfig(max=4, stop="decided", round=2))
    assert [group.question.id for group in groups] == ["a", "b"]
    assert sampler.calls == [(["a", "mute", "b"], 3, 0), (["b"], 1, 3)]  # the first of "a" is sure to win a tie
    assert asked(Scripted({}), VotesConfig(max=4, stop="decided")) == []


def test_no_text_is_parsed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def parse_all(texts: Sequence[str], spec: AnswerSpec) -> list[Answer]:
        read.extend(dict.fromkeys(texts))
        return [Answer(text, text) for text in texts]

    monkeypatch.setattr(rounds, "parse_all", parse_all)
    asked(Scripted({"a": ["7", "8", "7", "9"] * 4}), VotesConfig(max=16, stop="decided", round=4))
    assert sorted(read) == ["7", "8", "9"]


def test_the_posterior_ends_a_vote_sooner_than_certainty() -> None:
    said = {"a": ["7"] * 32}
    taken = {
        (stop, level): len(asked(Scripted(said), VotesConfig(max=32, stop=stop, level=level, round=1))[0].rollouts)
        for stop in ("decided", "confident")
        for level in (0.9, 0.95, 0.99)
    }
    # n votes for one answer: 1 - 2^-(n + 1) exceeds the level; n > 32 - n, were another answer to come.
    assert taken == {
        ("confident", 0.9): 3,
        ("confident", 0.95): 4,
        ("confident", 0.99): 6,
        **{("decided", level): 17 for level in (0.9, 0.95, 0.99)},
    }


@pytest.mark.parametrize("stop", ["decided", "confident"])
@given(st.lists(st.sampled_from(["7", "8", "9", ""]), min_size=2, max_size=16))
@settings(max_examples=60)
def test_no_vote_could_have_stopped_within_the_first_round(stop: Any, said: list[str]) -> None:
    votes = VotesConfig(max=len(said), stop=stop, level=0.8, round=1)
    for taken in range(1, round_ends(votes, 1)[0]):
        counts = {name: said[:taken].count(name) for name in set(said[:taken]) - {""}}
        assert not any(STOPS[stop](counts, len(said) - taken, keyed, 0.8, "q") for keyed in (True, False))


def test_the_rules_are_those_of_the_configuration() -> None:
    assert list(STOPS) == ["never", "decided", "confident"]
    for stop in STOPS:
        assert VotesConfig(stop=stop).stop == stop


# Exactness.

RESPONSES = (
    *(r"\boxed{0.25}", r"\boxed{1/4}", r"\boxed{\frac{\pi}{12.566371}}", r"\boxed{7}", r"\boxed{7.0}", "It is 8."),
    *(r"\boxed{\pi/6}", r"\boxed{0.523599}", r"\boxed{0.5235988}", r"\boxed{A}", "The answer is (B).", "Yes, it is."),
    *(r"\boxed{no}", r"\boxed{the cat}", r"\boxed{Cat}", r"\boxed{a}", "", "I cannot tell."),
)
SPECS = {
    **{kind: AnswerSpec(kind) for kind in known_kinds()},
    "choice": AnswerSpec("choice", ("7", "8", "cat")),
    "math_or_choice": AnswerSpec("math_or_choice", ("7", r"$\frac{\pi}{6}$", "8")),
}


@pytest.mark.parametrize("kind", known_kinds())
@pytest.mark.parametrize("cut_off", ["abstain", "count", "mask"])
@given(st.lists(st.sampled_from(RESPONSES), min_size=3, max_size=3), st.sets(st.integers(0, 9)), st.data())
@settings(max_examples=15)
def test_a_decided_vote_is_the_full_one_for_any_kind(
    kind: str, cut_off: Any, some: list[str], cut: set[int], data: st.DataObject
) -> None:
    said = data.draw(st.lists(st.sampled_from([some[0], *some, data.draw(st.sampled_from(RESPONSES))]), min_size=9))
    question = Question("q", (), "?", SPECS[kind])
    votes = VotesConfig(max=len(said), stop="decided", round=1, cut_off=cut_off)
    sampler = Scripted({"q": said}, cut)
    stopped = vote_in_rounds(sampler, [question], votes, 3, **HOW)[0]
    full = make_group(question, sampler.sample([question], len(said), **HOW)[0], votes)
    taken = len(stopped.rollouts)
    assert taken >= 3 and same_group(stopped, make_group(question, full.rollouts[:taken], votes))
    check_winner(stopped, full, answers.KINDS[kind].keyed)


def check_winner(stopped: Group, full: Group, keyed: bool) -> None:
    """What won still wins. Which rollouts are rewarded is the same, unless a later answer bridged two classes."""
    taken = full.answers[: len(stopped.answers)]
    before = [answer is not None and answer == stopped.vote.answer for answer in stopped.answers]
    after = [answer is not None and answer == full.vote.answer for answer in taken]
    assert all(now for was, now in zip(before, after, strict=True) if was)
    assert any(before) == (stopped.vote.answer is not None)
    if keyed:
        assert stopped.vote.answer == full.vote.answer and stopped.answers == taken
    if keyed or len(set(zip(stopped.answers, taken, strict=True))) == len(set(stopped.answers)) == len(set(taken)):
        assert before == after


def near(patch: pytest.MonkeyPatch) -> str:
    """A kind without keys whose equality is not transitive: numbers at most 1 apart."""

    def same(a: Answer, b: Answer, spec: AnswerSpec) -> bool:
        return abs(int(a.text) - int(b.text)) <= 1

    def parse(response: str, spec: AnswerSpec) -> Answer | None:
        return Answer(response, None) if response else None

    kind = replace(answers.KINDS["text"], parse=parse, same=same, keyed=False)
    patch.setitem(answers.KINDS, "near", kind)
    return "near"


@given(st.lists(st.sampled_from(["", "1", "2", "3", "5", "6", "8", "10", "12"]), min_size=2, max_size=14))
@settings(max_examples=300)
def test_a_decided_vote_is_the_full_one_however_answers_join(said: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        sampler = Scripted({"q": said})
        stopped = asked(sampler, VotesConfig(max=len(said), stop="decided", round=1), kind=near(patch))[0]
        full = make_group(stopped.question, sampler.sample([stopped.question], len(said), **HOW)[0])
        check_winner(stopped, full, keyed=False)


def test_a_bridge_after_the_stop_adds_to_the_winner_and_takes_nothing_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # 6 of 8 say 10 when it stops; the 11 that comes makes 12 one of them, and would have rewarded it.
    said = ["10"] * 6 + ["12", "11", "11"]
    sampler = Scripted({"q": said})
    stopped = asked(sampler, VotesConfig(max=9, stop="decided", round=7), kind=near(monkeypatch))[0]
    full = make_group(stopped.question, sampler.sample([stopped.question], 9, **HOW)[0])
    assert stopped.answers == ("10",) * 6 + ("12",) and full.answers == ("10",) * 9
    check_winner(stopped, full, keyed=False)


# Real samplers.


def drawn(group: Group) -> list[tuple[Any, ...]]:
    return [(r.index, r.token_ids, r.text, r.logp.tolist(), r.parent, r.fork_at) for r in group.rollouts]


def test_the_rollouts_are_the_first_of_the_full_vote() -> None:
    policy, questions = digit_policy(), tiny_questions(4)
    sampler = HFSampler(policy, small_config({"sampling": {"max_new_tokens": 1}}).sampling)
    full = vote_in_rounds(sampler, questions, VotesConfig(max=10, cut_off="count"), 2, **HOW)
    in_rounds = VotesConfig(max=10, stop="decided", round=2, cut_off="count")
    stopped = vote_in_rounds(sampler, questions, in_rounds, 2, **HOW)
    taken = [len(group.rollouts) for group in stopped]
    assert min(taken) < 10, taken
    for early, late in zip(stopped, full, strict=True):
        ours, theirs = drawn(early), drawn(late)[: len(early.rollouts)]
        for a, b in zip(ours, theirs, strict=True):
            assert (a[:3], a[4:]) == (b[:3], b[4:])
            np.testing.assert_allclose(a[3], b[3], atol=1e-5)
        assert early.vote.answer == late.vote.answer


def test_rounds_of_trees_cut_none() -> None:
    policy, questions = digit_policy(), tiny_questions(3)
    sampler = TreeSampler(HFSampler(policy, small_config().sampling), TreeConfig(forks=2, branches=1))
    full = vote_in_rounds(sampler, questions, VotesConfig(max=11, cut_off="count"), 1, **HOW)
    in_three = VotesConfig(max=11, stop="decided", round=2, cut_off="count")
    assert round_ends(in_three, 1, sampler.whole) == [6, 9, 11]
    stopped = vote_in_rounds(sampler, questions, in_three, 1, **HOW)
    for early, late in zip(stopped, full, strict=True):
        assert [r[:3] + r[4:] for r in drawn(early)] == [r[:3] + r[4:] for r in drawn(late)][: len(early.rollouts)]
    assert max(len(group.rollouts) for group in stopped) == 11
    assert any(r.parent is not None for group in full for r in group.rollouts)


def test_a_step_with_an_early_stop_trains_on_the_same_rollouts_and_counts_what_it_spared() -> None:
    def run(votes: dict[str, Any]) -> StepRecord:
        records: list[StepRecord] = []
        config = small_config(
            {"method": "ttrl", "sampling": {"votes": {"max": 12, **votes}, "train_rollouts": 3}, "optim": {"steps": 1}}
        )
        adapt(tiny_questions(4), digit_policy(), config=config, hooks=Hooks(on_step=records.append))
        return records[0]

    full, early = run({}), run({"stop": "decided", "round": 1})
    assert [[r.token_ids for r in g.rollouts] for g in full.groups] == [
        [r.token_ids for r in g.rollouts] for g in early.groups
    ]
    assert [g.answers for g in full.groups] == [g.answers for g in early.groups]
    assert [g.rewards.tolist() for g in full.groups] == [g.rewards.tolist() for g in early.groups]
    assert (full.report.rollouts_sampled, full.report.tokens_saved) == (48, 0)
    assert 12 <= early.report.rollouts_sampled < 48 and early.report.tokens_saved > 0
    assert early.report.tokens_sampled < full.report.tokens_sampled
    assert early.report.tokens_trained == full.report.tokens_trained


# What is reported.


def rollout(index: int, tokens: int, fork_at: int | None = None, weight: int = 1) -> Rollout:
    parent = None if fork_at is None else 0
    none = np.zeros(tokens, np.float32)
    return Rollout("q", index, (1,) * tokens, "7", none, none, "stop", parent, fork_at, weight)


def group_of(*rollouts: Rollout) -> Group:
    return make_group(Question("q", (), "?", AnswerSpec("integer")), rollouts)


def test_tokens_saved_are_shared_prefixes_and_votes_not_cast() -> None:
    tree = group_of(rollout(0, 10), rollout(1, 12, 4), rollout(2, 8, 0))  # 10 + 8 + 8 tokens drawn, 4 shared
    assert step_report.tokens_saved(tree, 3) == 4
    assert step_report.tokens_saved(tree, 6) == 4 + 26
    assert step_report.tokens_saved(group_of(rollout(0, 3), rollout(1, 4)), 5) == 10  # 3 x 3.5, halves to even
    assert step_report.tokens_saved(group_of(rollout(0, 0), rollout(1, 0)), 8) == 0
    assert step_report.tokens_saved(group_of(rollout(0, 3, weight=3)), 5) == 6


def test_shared_tokens_are_counted_once_and_all_ranks_together() -> None:
    report = StepReport(0)
    voted = [group_of(rollout(0, 10), rollout(1, 12, 4)), group_of(rollout(0, 5), rollout(1, 5), rollout(2, 5))]
    nothing = [[_no_tokens(r) for r in group.rollouts] for group in voted]
    step_report.describe(report, voted, voted, nothing, 4)
    assert (report.rollouts_sampled, report.tokens_sampled) == (5, 10 + 8 + 15)
    assert report.tokens_saved == 4 + 18 + 5
    assert report.length_mean == pytest.approx(37 / 5) and report.majority_share == 1.0


def _no_tokens(r: Rollout) -> Tokens:
    none = torch.zeros(len(r.token_ids), dtype=torch.bool)
    return Tokens(none, none, None)


@given(st.lists(st.sampled_from(["7", "8", ""]), min_size=1, max_size=12))
@settings(max_examples=50)
def test_shares_are_of_the_rollouts_taken(said: list[str]) -> None:
    sampler = Scripted({"q": said * 2})
    group = asked(sampler, VotesConfig(max=2 * len(said), stop="confident", level=0.8, round=1))[0]
    taken = (said * 2)[: len(group.rollouts)]
    outcome, classes = vote([Answer(text, text) if text else None for text in taken], AnswerSpec("integer"), "q")
    assert group.vote == outcome and group.answers == classes
