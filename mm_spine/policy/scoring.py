"""Exact log-probs and entropies of given responses under the policy, without gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from mm_spine.policy.distribution import Distribution
from mm_spine.policy.errors import NotFinite
from mm_spine.policy.model import Policy
from mm_spine.policy.packed import Branches, pack
from mm_spine.types import Question, Statistic

QuestionResponses = tuple[Question, Sequence[Sequence[int]]]
"""A question and the token ids of its responses. Responses may be equal or empty."""


class Scores(NamedTuple):
    """Log-probs of one response's T tokens and full-vocabulary entropies, both (T,), nats, fp32; and the statistics
    asked for, each (T,)."""

    logp: np.ndarray
    entropy: np.ndarray
    statistics: tuple[np.ndarray, ...] = ()


@torch.no_grad()
def score_responses(
    policy: Policy,
    asked: Sequence[QuestionResponses],
    distribution: Distribution,
    statistics: Sequence[Statistic] = (),
) -> list[list[Scores]]:
    """Return the scores of every response of every question, in order, from one packed forward.

    Prompts and common prefixes are computed once. Memory grows with the packed tokens. Raises NotFinite naming the
    first question whose log-probs are not finite.
    """
    if not any(responses for _, responses in asked):
        return [[] for _ in asked]
    packed = pack([_branches(policy, question, responses) for question, responses in asked])
    found = policy.text(packed, distribution, None, statistics)
    logp_NT, entropy_NT, *values = (
        x_NT.cpu().numpy() for x_NT in (found.stats.logp_NT, found.stats.entropy_NT, *found.statistics)
    )
    if not np.isfinite(logp_NT).all():
        ids = [question.id for question, responses in asked for _ in responses]
        first = ids[int((~np.isfinite(logp_NT)).any(-1).argmax())]
        raise NotFinite(
            f"{first}: the log-probs of its responses are not finite: the weights are broken; go on from "
            "the last checkpoint with a lower optim.lr"
        )
    rows = iter(zip(logp_NT, entropy_NT, *values, strict=True))

    def scores_of(tokens: Sequence[int]) -> Scores:
        logp_T, entropy_T, *own = (row[: len(tokens)].copy() for row in next(rows))
        return Scores(logp_T, entropy_T, tuple(own))

    return [[scores_of(tokens) for tokens in responses] for _, responses in asked]


def _branches(policy: Policy, question: Question, responses: Sequence[Sequence[int]]) -> Branches:
    leaves = [torch.tensor(tuple(tokens), dtype=torch.long) for tokens in responses]
    return Branches(policy.prompt(question), leaves, [torch.ones(len(leaf), dtype=torch.bool) for leaf in leaves])
