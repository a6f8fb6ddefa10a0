"""Measure drawn rollouts: their tokens, and the gap of the sampler's log-probs to the trainer's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from mm_spine.policy.distribution import Distribution
from mm_spine.policy.model import Policy
from mm_spine.policy.scoring import score_responses
from mm_spine.types import Question, Rollout

Drawn = Sequence[Sequence[Rollout]]
"""The rollouts of each question."""


def flat(drawn: Drawn) -> list[Rollout]:
    """Return the rollouts of all questions in one list."""
    return [rollout for group in drawn for rollout in group]


def drawn_tokens(drawn: Drawn) -> int:
    """Count the tokens that were generated: of a branch, those from its fork on."""
    return sum(rollout.own_tokens for rollout in flat(drawn))


def logprob_gap(policy: Policy, questions: Sequence[Question], drawn: Drawn, temperature: float = 1.0) -> float:
    """Return the largest |sampler's - trainer's| log-prob (nats) of all drawn tokens, by the packed forward."""
    distribution = Distribution(temperature, policy.banned)
    pairs = zip(questions, drawn, strict=True)
    return max(gap for question, group in pairs for gap in _gaps(policy, question, group, distribution))


def _gaps(policy: Policy, question: Question, group: Sequence[Rollout], distribution: Distribution) -> Iterator[float]:
    scores = score_responses(policy, [(question, [rollout.token_ids for rollout in group])], distribution)[0]
    for rollout, score in zip(group, scores, strict=True):
        yield float(np.abs(rollout.logp - score.logp).max())


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a Markdown table, one line per row."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *rows))
