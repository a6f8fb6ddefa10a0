"""Responses drawn anew from a token of high entropy (arXiv 2508.11016, first stage), on any backend.

The paper's authors publish their code as bytedance/CURE; what is said of it below is what that code does.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from numpy.random import Generator

from mm_spine.config import RegenerateConfig
from mm_spine.policy.model import Policy
from mm_spine.sampling import Request
from mm_spine.sampling.backend import Backend
from mm_spine.sampling.growing import GrowingSampler, entropies_of, special_ids
from mm_spine.sampling.tree import fork_places
from mm_spine.types import Growth, Question, Rollout


class RegeneratingSampler(GrowingSampler):
    """Sample families of a root and its `continuations`; see `GrowingSampler`.

    With 3 continuations, 16 votes are 4 roots and 12 continuations: rollouts 0, 4, 8 and 12 are the roots.
    """

    def __init__(self, backend: Backend, options: RegenerateConfig) -> None:
        super().__init__(backend, regeneration(options, backend.policy))


def regeneration(options: RegenerateConfig, policy: Policy) -> Growth:
    """Return how roots are continued: all continuations of a root begin at one token, which they draw anew.

    It is drawn uniformly among the `candidates` tokens of highest entropy, as the authors' code does. Like there, the
    first token, special tokens and tokens of fewer than `least_characters` characters are no candidates, and without
    any candidate the continuations are responses of their own.
    """
    special = special_ids(policy)

    @cache
    def too_short(token: int) -> bool:
        return len(policy.tokenizer.decode([token]).strip()) < options.least_characters

    def propose(question: Question, drawn: Sequence[Rollout], rng: Generator) -> list[Request]:
        root = drawn[0]
        barred = special | {token for token in root.token_ids if too_short(token)}
        ranked = fork_places(root.token_ids, entropies_of(root), len(root.token_ids), barred)
        places = [at for at in ranked if at > 0][: options.candidates]
        if not places:
            return []
        prefix = root.token_ids[: places[rng.integers(len(places))]]
        return [Request(question, root.index + 1 + i, prefix, {}, root.index) for i in range(options.continuations)]

    return Growth(1 + options.continuations, propose, reads_entropies=True)
