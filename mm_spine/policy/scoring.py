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
from mm_spine.types import Question

QuestionResponses = tuple[Question, Sequence[Sequence[int]]]
"""A question and the token ids of its responses. Responses may be equal or empty."""


class Scores(NamedTuple):
    """Log-probs of one response's T tokens and full-vocabulary entropies, both (T,), nats, fp32."""

    logp: np.ndarray
    entropy: np.ndarray


@torch.no_grad()
def score_responses(
    policy: Policy, asked: Sequence[QuestionResponses], distribution: Distribution
) -> list[list[Scores]]:
    """Return the scores of every response of every question, in order, from one packed forward.

    Prompts and common prefixes are computed once. Memory grows with the packed tokens. Raises NotFinite naming the
    first question whose log-probs are not finite.
    """
    if not any(responses for _, responses in asked):
        return [[] for _ in asked]
    packed = pack([_branches(policy, question, responses) for question, responses in asked])
    stats = policy.text(packed, distribution).stats
    logp_NT, entropy_NT = stats.logp_NT.cpu().numpy(), stats.entropy_NT.cpu().numpy()
    if not np.isfinite(logp_NT).all():
        ids = [question.id for question, responses in asked for _ in responses]
        first = ids[int((~np.isfinite(logp_NT)).any(-1).argmax())]
        raise NotFinite(
            f"{first}: the log-probs of its responses are not finite: the weights are broken; go on from "
            "the last checkpoint with a lower optim.lr"
        )
    rows = iter(zip(logp_NT, entropy_NT, strict=True))
    return [[Scores(*(x[: len(tokens)].copy() for x in next(rows))) for tokens in responses] for _, responses in asked]


def _branches(policy: Policy, question: Question, responses: Sequence[Sequence[int]]) -> Branches:
    leaves = [torch.tensor(tuple(tokens), dtype=torch.long) for tokens in responses]
    return Branches(policy.prompt(question), leaves, [torch.ones(len(leaf), dtype=torch.bool) for leaf in leaves])
