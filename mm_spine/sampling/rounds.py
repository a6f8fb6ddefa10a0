"""Votes in rounds: a question gets further rollouts only while its vote is open."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from mm_spine.config import VotesConfig
from mm_spine.processors.answers import kind_of, parse_all
from mm_spine.sampling import Sampler
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

    The rollouts of a question are the first ones of its full vote, in the same order. A further round asks only the
    questions whose vote is open, and prefills their prompts again. Ranks do not wait for one another.
    """
    ballots = [_Ballot(question, votes) for question in questions]
    opened, taken, stop = ballots, 0, STOPS[votes.stop]
    for end in round_ends(votes, least, getattr(sampler, "whole", 1)):
        asked = [ballot.question for ballot in opened]
        drawn = sampler.sample(asked, end - taken, step=step, purpose=purpose, first=taken)
        counted = [ballot.add(rollouts) for ballot, rollouts in zip(opened, drawn, strict=True) if rollouts]
        taken = end
        opened = [ballot for ballot in counted if not ballot.may_stop(stop, votes.max - end)]
        if not opened:
            break
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

    def add(self, rollouts: Sequence[Rollout]) -> _Ballot:
        """Add `rollouts` and vote again."""
        self.rollouts += rollouts
        new = [text for rollout in rollouts if (text := rollout.text) not in self._parsed]
        self._parsed |= zip(new, parse_all(new, self.question.spec), strict=True)
        answers = [self._parsed[rollout.text] for rollout in self.rollouts]
        self.group = group_of(self.question, self.rollouts, answers, self.votes)
        return self

    def may_stop(self, stop: Stop, remaining: int) -> bool:
        """Whether the vote may end by the rule `stop`, with `remaining` rollouts not yet drawn."""
        return stop(self.group.vote.counts, remaining, self.keyed, self.votes.level, self.question.id)
