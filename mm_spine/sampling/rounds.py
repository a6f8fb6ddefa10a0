"""Votes in rounds: a question gets further rollouts only while its vote is open."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mm_spine.config import VotesConfig
from mm_spine.processors.answers import kind_of, parse_all
from mm_spine.sampling import Draw, PhasedSampler, Sampler
from mm_spine.sampling.phase import Script, Waves, drive
from mm_spine.types import Answer, Group, Question, Rollout
from mm_spine.voting import confident, decided, group_of

Stop = Callable[[Mapping[str, int], int, bool, float, str], bool]
"""(class name -> votes, rollouts that remain, whether the kind has keys, level, question id) -> whether the vote may
end."""

STOPS: Mapping[str, Stop] = {
    "never": lambda counts, remaining, keyed, level, question_id: False,
    "decided": lambda counts, remaining, keyed, level, question_id: decided(counts, remaining, keyed, question_id),
    "confident": lambda counts, remaining, keyed, level, question_id: confident(counts, level),
}
"""The rules of `sampling.votes.stop`. A new rule is a function, an entry here and a name in `VotesConfig.stop`."""


def vote_in_rounds(
    sampler: Sampler, questions: Sequence[Question], votes: VotesConfig, least: int, *, step: int, purpose: str
) -> list[Group]:
    """Return the voted groups of the questions that could be asked, each with `least` to `votes.max` rollouts.

    The rollouts of a question are the first ones of its full vote, in the same order. A question whose vote is open is
    asked again in the same phase, as soon as its own round is drawn; a sampler that has nothing but `sample` is called
    once a round, with all open questions. Ranks do not wait for one another.
    """
    ballots = [_Ballot(question, votes) for question in questions]
    ends = round_ends(votes, least, getattr(sampler, "whole", 1))
    phased = sampler if isinstance(sampler, PhasedSampler) else _Calls(sampler)
    phased.run([ballot.cast(phased.draw, ends) for ballot in ballots], step=step, purpose=purpose)
    return [ballot.group for ballot in ballots if ballot.rollouts]


def round_ends(votes: VotesConfig, least: int, whole: int = 1) -> list[int]:
    """Return how many rollouts a question has after each round: multiples of `whole`, and `votes.max` at the end.

    `whole` is the number of rollouts of one tree if the sampler draws trees, so that only the last round may cut one.
    """
    # The first round is as long as it can be without drawing a rollout that might be spared: `least`, or the fewest
    # after which the rule ends a unanimous vote, which is more than half of `votes.max` for `decided`.
    stop = STOPS[votes.stop]
    may_stop = (n for n in range(1, votes.max) if stop({"": n}, votes.max - n, True, votes.level, ""))
    ends = [_rounded_up(max(least, votes.round, next(may_stop, votes.max)), whole)]
    while ends[-1] < votes.max:
        ends.append(ends[-1] + _rounded_up(votes.round, whole))
    return [*ends[:-1], votes.max]


def _rounded_up(count: int, whole: int) -> int:
    return -(-count // whole) * whole


class _Ballot:
    """One question's rollouts so far and their vote. No text is parsed twice."""

    group: Group

    def __init__(self, question: Question, votes: VotesConfig) -> None:
        self.question, self.votes = question, votes
        self.keyed = kind_of(question.spec).keyed
        self.rollouts: list[Rollout] = []
        self._parsed: dict[str, Answer | None] = {}

    def cast(self, draw: Draw, ends: Sequence[int]) -> Script[None]:
        """Draw rollouts up to each of `ends` in turn until the vote may stop, as a script."""
        taken = 0
        for end in ends:
            rollouts = yield from draw(self.question, end - taken, taken)
            taken = end
            if not rollouts or self.add(rollouts).may_stop():
                break

    def add(self, rollouts: Sequence[Rollout]) -> _Ballot:
        """Add `rollouts` and vote again."""
        self.rollouts += rollouts
        new = [text for rollout in rollouts if (text := rollout.text) not in self._parsed]
        self._parsed |= zip(new, parse_all(new, self.question.spec), strict=True)
        answers = [self._parsed[rollout.text] for rollout in self.rollouts]
        self.group = group_of(self.question, self.rollouts, answers, self.votes)
        return self

    def may_stop(self) -> bool:
        """Whether the vote may end by the rule."""
        votes, remaining = self.votes, self.votes.max - len(self.rollouts)
        if votes.stop == "decided" and kind_of(self.question.spec).classes is not None:
            return remaining == 0
        return STOPS[votes.stop](self.group.vote.counts, remaining, self.keyed, votes.level, self.question.id)


@dataclass(frozen=True, eq=False)
class _Ask:
    """The rollouts `first` to `first + n - 1` of a question, to be asked for."""

    question: Question
    n: int
    first: int


class _Calls:
    """A sampler that has nothing but `sample`, as a phased one: all questions that wait are asked in one call."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler

    def draw(self, question: Question, n: int, first: int = 0) -> Script[list[Rollout]]:
        """See `PhasedSampler.draw`."""
        (rollouts,) = yield [_Ask(question, n, first)]
        found: list[Rollout] = rollouts
        return found

    def run(self, scripts: Sequence[Script[Any]], *, step: int, purpose: str) -> list[Any]:
        """See `PhasedSampler.run`."""

        def answer(asks: Sequence[_Ask]) -> list[list[Rollout]]:
            # Rounds end alike for all questions.
            ((n, first),) = {(ask.n, ask.first) for ask in asks}
            return self.sampler.sample([ask.question for ask in asks], n, step=step, purpose=purpose, first=first)

        return drive(scripts, Waves(answer))
