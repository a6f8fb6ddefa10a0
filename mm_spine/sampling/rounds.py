"""Votes in rounds: a question is asked again only while its vote is open."""

from __future__ import annotations

from collections.abc import Sequence

from mm_spine.config import VotesConfig
from mm_spine.sampling import Sampler
from mm_spine.types import Group, Question
from mm_spine.voting import make_group


def vote_in_rounds(
    sampler: Sampler, questions: Sequence[Question], votes: VotesConfig, least: int, *, step: int, purpose: str
) -> list[Group]:
    """The voted groups of the questions that could be asked, at least `least` rollouts each, `votes.max` at most."""
    rollouts = sampler.sample(questions, votes.max, step=step, purpose=purpose)
    return [make_group(question, drawn) for question, drawn in zip(questions, rollouts, strict=True) if drawn]
