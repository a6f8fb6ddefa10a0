"""Questions in several wordings: who answers which, one vote, and groups divided and joined again."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain, pairwise
from typing import Any

import pytest
import torch
from tree_backends import CALL, QUESTIONS, Scripted, digits, outline, policy, random_script

from mm_spine.config import ConfigError, DecodingConfig, TreeConfig, VotesConfig
from mm_spine.config.layers import build
from mm_spine.methods.table import configure
from mm_spine.sampling.hf import HFSampler
from mm_spine.sampling.registry import make_sampler
from mm_spine.sampling.rounds import vote_in_rounds
from mm_spine.sampling.tree import TreeSampler
from mm_spine.sampling.wordings import WordingSampler, by_wording, rejoined, worded
from mm_spine.types import Group, Question, Rollout
from mm_spine.voting import make_group

WORDINGS = ("First: {question}", "{question}\nLast, {x}.")


def flat() -> HFSampler:
    return HFSampler(digits(), DecodingConfig(max_new_tokens=4))


def test_a_wording_is_the_question_with_other_words() -> None:
    question = replace(QUESTIONS[0], id="q", prompt="How {many}?")
    assert worded(question, WORDINGS, 0) is question
    first, last = (worded(question, WORDINGS, n) for n in (1, 2))
    assert (first.id, first.prompt) == ("q#2", "First: How {many}?")
    assert (last.id, last.prompt) == ("q#3", "How {many}?\nLast, {x}.")
    assert first.images == question.images and first.spec == question.spec


def test_rollout_i_answers_wording_i_mod_k() -> None:
    found = WordingSampler(flat(), WORDINGS).sample(QUESTIONS, 8, **CALL)
    for question, group in zip(QUESTIONS, found, strict=True):
        assert [r.index for r in group] == list(range(8)) and {r.question_id for r in group} == {question.id}
        for number, count in enumerate((3, 3, 2)):
            (alone,) = flat().sample([worded(question, WORDINGS, number)], count, **CALL)
            assert [r.token_ids for r in group[number::3]] == [r.token_ids for r in alone]


@pytest.mark.parametrize("cuts", [(0, 3, 8), (0, 1, 2, 8), (0, 7, 8)])
def test_rounds_draw_what_one_call_draws(cuts: tuple[int, ...]) -> None:
    sampler = WordingSampler(flat(), WORDINGS)
    whole = sampler.sample(QUESTIONS, 8, **CALL)
    parts = [sampler.sample(QUESTIONS, b - a, first=a, **CALL) for a, b in pairwise(cuts)]
    assert outline(whole) == outline(chain(*own) for own in zip(*parts, strict=True))


def test_families_are_of_one_wording() -> None:
    backend = Scripted(policy(), 9, random_script(9))
    sampler = WordingSampler(TreeSampler(backend, TreeConfig(forks=1, branches=2)), WORDINGS[:1])
    assert sampler.whole == 6
    (group,) = sampler.sample(QUESTIONS[:1], 12, **CALL)
    assert [r.parent for r in group] == [None, None, 0, 1, 0, 1, None, None, 6, 7, 6, 7]
    for rollout in group:
        if rollout.parent is not None:
            at = rollout.fork_at or 0
            assert rollout.token_ids[:at] == group[rollout.parent].token_ids[:at]


def test_greedy_responses_are_to_the_questions_own_words() -> None:
    found = WordingSampler(flat(), WORDINGS).sample(QUESTIONS, 2, greedy=True, **CALL)
    assert outline(found) == outline(flat().sample(QUESTIONS, 2, greedy=True, **CALL))


def test_a_wording_that_cannot_be_asked_has_no_rollouts() -> None:
    (group,) = WordingSampler(flat(), (f"{'many words ' * 200}{{question}}",)).sample(QUESTIONS[:1], 6, **CALL)
    assert [r.index for r in group] == [0, 2, 4]


class Saying:
    """A phased sampler whose rollouts say what `said` says for the id of the wording."""

    version = 0

    def __init__(self, said: dict[str, str]) -> None:
        self.said = said

    def draw(self, question: Question, n: int, first: int = 0) -> Any:
        return self._script(question, n, first)

    def _script(self, question: Question, n: int, first: int) -> Any:
        yield []
        return [
            replace(ROLLOUT, question_id=question.id, index=first + i, text=self.said[question.id]) for i in range(n)
        ]

    def run(self, scripts: Any, **how: Any) -> list[Any]:
        return flat().run(scripts, **how)


ROLLOUT = Rollout("", 0, (1,), "", torch.zeros(1).numpy(), None, "stop")


def voted() -> Group:
    """Wordings 0 and 1 answer 7, wording 2 answers 8."""
    question = Question("q", (), "?", "integer")
    said = {"q": "7", "q#2": "\\boxed{7}", "q#3": "8"}
    sampler: Any = WordingSampler(Saying(said), WORDINGS)  # type: ignore[arg-type]
    (group,) = vote_in_rounds(sampler, [question], VotesConfig(max=6), 6, step=0, purpose="train")
    return group


def test_one_vote_is_over_all_wordings() -> None:
    group = voted()
    assert group.answers == ("7", "7", "8", "7", "7", "8")
    assert group.vote.answer == "7" and group.vote.share == pytest.approx(4 / 6)
    assert group.question.id == "q" and group.wording_of is None


def test_groups_are_divided_by_wording_under_the_vote_of_all() -> None:
    group = voted()
    parts = by_wording(group, WORDINGS)
    assert [part.question for part in parts] == [worded(group.question, WORDINGS, n) for n in range(3)]
    assert [part.answers for part in parts] == [("7", "7"), ("7", "7"), ("8", "8")]
    assert [[r.index for r in part.rollouts] for part in parts] == [[0, 3], [1, 4], [2, 5]]
    assert all(r.question_id == part.question.id for part in parts for r in part.rollouts)
    assert all(part.vote is group.vote and part.wording_of == "q" for part in parts)
    assert by_wording(group, ()) == [group]


def test_divided_groups_are_joined_again() -> None:
    group = voted()
    parts = [
        replace(part, rewards=torch.tensor([n, n + 10.0]), advantages=torch.tensor([-n, -n - 10.0]))
        for n, part in enumerate(by_wording(group, WORDINGS))
    ]
    (whole,), (values,) = rejoined(parts, [("a", "d"), ("b", "e"), ("c", "f")], [group.question])
    assert "".join(values) == "abcdef"
    assert whole.rewards is not None and whole.rewards.tolist() == [0, 1, 2, 10, 11, 12]
    assert whole.advantages is not None and whole.advantages.tolist() == [0, -1, -2, -10, -11, -12]
    assert outline([whole.rollouts]) == outline([group.rollouts]) and whole.wording_of is None
    assert (whole.question, whole.answers, whole.parsed) == (group.question, group.answers, group.parsed)
    alone = make_group(group.question, group.rollouts)
    assert rejoined([alone], [values], []) == ([alone], [values])


def test_the_configuration_chooses_the_samplers() -> None:
    config = configure({"sampling": {"wordings": list(WORDINGS), "tree": {}}})
    sampler = make_sampler(digits(), config)
    assert isinstance(sampler, WordingSampler) and isinstance(sampler.inner, TreeSampler)
    assert isinstance(make_sampler(digits(), config, config.evaluation), HFSampler)
    assert not config.sampling.plain and configure().sampling.plain


@pytest.mark.parametrize(
    ("wordings", "said"),
    [
        (["no place"], "must hold {question} once"),
        (["{question} {question}"], "must hold {question} once"),
        ([" {question}"], "words beside it"),
        (["a {question}", "a {question}"], "two wordings are the same"),
    ],
)
def test_wrong_wordings_are_refused(wordings: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match="sampling.wordings") as error:
        build({"sampling": {"wordings": wordings}})
    assert said in str(error.value)


def test_one_thing_grows() -> None:
    with pytest.raises(ConfigError, match="tree and regenerate exclude each other"):
        build({"sampling": {"tree": {}, "regenerate": {}}})
