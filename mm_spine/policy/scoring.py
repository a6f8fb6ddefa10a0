"""What the policy says of responses that stand already: exact log-probs and entropies, without gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from mm_spine.policy.distribution import Distribution
from mm_spine.policy.model import Policy
from mm_spine.policy.packed import Branches, pack
from mm_spine.types import Question

Asked = tuple[Question, Sequence[Sequence[int]]]
"""A question and the token ids of its responses, which may be equal, or of no tokens."""


class Scores(NamedTuple):
    """Of one response of T tokens: log-probs of its tokens and full-vocabulary entropies (T,), nats, fp32."""

    logp: np.ndarray
    entropy: np.ndarray


@torch.no_grad()
def score_responses(policy: Policy, asked: Sequence[Asked], distribution: Distribution) -> list[list[Scores]]:
    """The scores of every response of every question, in order, from one packed forward for all of them.

    A prompt is computed once, and so is what responses have in common; memory grows with the packed tokens.
    """
    if not any(responses for _, responses in asked):
        return [[] for _ in asked]
    packed = pack([_branches(policy, question, responses) for question, responses in asked])
    stats = policy.text(packed, distribution).stats
    logp_NT, entropy_NT = stats.logp_NT.cpu().numpy(), stats.entropy_NT.cpu().numpy()
    rows = iter(zip(logp_NT, entropy_NT, strict=True))
    return [[Scores(*(x[: len(tokens)].copy() for x in next(rows))) for tokens in responses] for _, responses in asked]


def _branches(policy: Policy, question: Question, responses: Sequence[Sequence[int]]) -> Branches:
    leaves = [torch.tensor(tuple(tokens), dtype=torch.long) for tokens in responses]
    return Branches(policy.prompt(question), leaves, [torch.ones(len(leaf), dtype=torch.bool) for leaf in leaves])
