"""Credit and tokens by how a rollout was drawn: as the continuation of another one, or in another wording."""

from __future__ import annotations

import torch
from torch import Tensor

from mm_spine.config import MethodConfig
from mm_spine.methods.credit import normalised
from mm_spine.methods.method import Batch
from mm_spine.methods.tokens import Tokens


def own_tokens(options: MethodConfig, batch: Batch, tokens: list[list[Tokens]]) -> list[list[Tokens]]:
    """Leave the tokens that a continuation has from its root out of the policy term: the root trains them."""
    pairs = zip(batch.groups, tokens, strict=True)
    return [
        [_from(chosen, r.fork_at or 0) for r, chosen in zip(group.rollouts, own, strict=True)] for group, own in pairs
    ]


def _from(tokens: Tokens, first: int) -> Tokens:
    """Return the tokens without those before `first` in the policy term."""
    own_T = torch.arange(len(tokens.policy_T)) >= first
    return tokens._replace(policy_T=tokens.policy_T & own_T)


def over_wordings(options: MethodConfig, batch: Batch, rewards_QN: list[Tensor]) -> list[Tensor]:
    """Turn rewards into advantages as the options say, the wordings of a question taken as one group."""
    places: dict[str, list[int]] = {}
    for i, group in enumerate(batch.groups):
        places.setdefault(group.wording_of or group.question.id, []).append(i)
    joined = [torch.cat([rewards_QN[i] for i in own]) for own in places.values()]
    found: list[Tensor] = list(rewards_QN)
    for own, whole_N in zip(places.values(), normalised(options, batch, joined), strict=True):
        parts = torch.split(whole_N, [len(rewards_QN[i]) for i in own])
        for i, part_N in zip(own, parts, strict=True):
            found[i] = part_N
    return found
