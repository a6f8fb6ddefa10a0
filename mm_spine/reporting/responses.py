"""The first responses of a step, for people to read while the run goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from mm_spine.types import Group, Question


@dataclass(frozen=True)
class ShownResponse:
    """One response with its answer, the answer that won the vote, and its reward; None where there is none."""

    question: Question
    index: int
    text: str
    answer: str | None
    vote: str | None
    reward: float | None


def first_responses(groups: Sequence[Group], count: int) -> list[ShownResponse]:
    """Return `count` responses: the first of each question, then the second of each question, and so on."""
    # Taken in this order and not drawn: a draw would advance a generator, and so change the run.
    longest = max((len(group.rollouts) for group in groups), default=0)
    in_turns = (
        _shown_response(group, place) for place in range(longest) for group in groups if place < len(group.rollouts)
    )
    return list(islice(in_turns, count))


def _shown_response(group: Group, place: int) -> ShownResponse:
    rollout = group.rollouts[place]
    return ShownResponse(
        question=group.question,
        index=rollout.index,
        text=rollout.text,
        answer=group.answers[place],
        vote=group.vote.answer,
        reward=None if group.rewards is None else float(group.rewards[place]),
    )
