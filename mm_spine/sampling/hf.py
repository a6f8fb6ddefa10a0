"""Rollouts from transformers, batched continuously: whole questions join as soon as there is room for them.

A question's prompt and image are prefilled once, and so is each prefix that others begin with; the prompt's keys and
values are held once for all its rows (`kv_cache`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mm_spine.config import DecodingConfig
from mm_spine.draws import uniforms
from mm_spine.policy.distribution import entropy_of
from mm_spine.policy.model import Policy
from mm_spine.policy.packed import Prompt
from mm_spine.sampling import Completion, Request
from mm_spine.sampling.backend import Backend
from mm_spine.sampling.batch import Batch
from mm_spine.sampling.kv_cache import held_tokens, token_bytes
from mm_spine.types import Rollout

LOGIT_BYTES = 64 * 2**20
"""Of the fp32 logits that are turned into draws at a time: several tensors of that size live, some in fp64."""


class Waiting(NamedTuple):
    """A question's prompt, and the numbers of its requests that have not begun."""

    prompt: Prompt
    numbers: deque[int]


class HFSampler(Backend):
    """Samples from `policy.text` as it stands; nothing to sync. Log-probs and entropies are exact."""

    def __init__(self, policy: Policy, decoding: DecodingConfig, seed: int = 0) -> None:
        super().__init__(policy, decoding, seed)
        self._ends = np.array(self.ends, np.int64)

    def sync(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Nothing to do: the sampler reads the policy's own weights."""

    @torch.no_grad()
    def complete(
        self, requests: Sequence[Request], *, step: int, purpose: str, greedy: bool = False
    ) -> list[Completion]:
        """See `Backend.complete`."""
        done = self.ended(requests, entropies=True)
        waiting = self._questions(requests, [i for i in range(len(requests)) if i not in done])
        batch = Batch(self.policy, requests, self.decoding.max_new_tokens)
        while waiting or len(batch.rows):
            if joining := self._joining(batch, waiting):
                batch.admit(joining, np.stack([self._draws(requests[i], step, purpose, greedy) for i in joining]))
            batch.record(*self._draw(batch, greedy), ends=self._ends)
            before = len(done)
            done |= batch.retire(needed=id(waiting[0].prompt) if waiting else None)
            self.on_finished(len(done) - before)
            batch.step()
        return [done[i] for i in range(len(requests))]

    def _questions(self, requests: Sequence[Request], numbers: Sequence[int]) -> deque[Waiting]:
        """The requests question by question, longest prompt first."""
        asked: dict[int, Waiting] = {}
        for i in numbers:
            prompt = self.policy.prompt(requests[i].question)
            asked.setdefault(id(prompt), Waiting(prompt, deque())).numbers.append(i)
        return deque(sorted(asked.values(), key=lambda question: -len(question.prompt.ids_L)))

    def _joining(self, batch: Batch, waiting: deque[Waiting]) -> list[int]:
        """Take from `waiting` the numbers of what fits beside the running rows: whole questions, in pieces only one
        that never fits whole; one row at least where nothing runs."""
        joining: list[int] = []
        lengths, here = batch.prompts.length_B.tolist(), set(batch.prompts.slots)
        while waiting:
            prompt, numbers = waiting[0]
            begun = id(prompt) in here
            with_own = lengths if begun else [*lengths, len(prompt.ids_L)]
            rows = len(batch.rows) + len(joining)
            fit = max(self._room(with_own) - rows, 0 if rows else 1)
            in_pieces = begun or self._room([len(prompt.ids_L)]) < len(numbers)
            if fit < (1 if in_pieces else len(numbers)):
                break
            joining += [numbers.popleft() for _ in range(min(fit, len(numbers)))]
            lengths, here = with_own, here | {id(prompt)}
            if numbers:
                break
            waiting.popleft()
        return joining

    def _room(self, prompt_lengths: Sequence[int]) -> int:
        """How many rows may be held beside prompts of these lengths; negative where the prompts alone are too much."""
        length = self.decoding.max_new_tokens
        tokens = int(self.decoding.kv_cache_gb * 1e9) // token_bytes(self.policy.text.language_model)
        return min(self.decoding.batch_rows, (tokens - held_tokens(prompt_lengths, 0, length)) // length)

    def _draws(self, request: Request, step: int, purpose: str, greedy: bool) -> np.ndarray:
        length = self.decoding.max_new_tokens
        name = (self.seed, purpose, step, request.question.id, request.index)
        return np.zeros(length) if greedy else uniforms(length, *name)

    def _draw(self, batch: Batch, greedy: bool) -> tuple[Tensor, Tensor, Tensor]:
        """(token, log-prob, entropy) of each row's next token, (R,)."""
        uniform_R = torch.from_numpy(batch.uniform_R).to(self.policy.device)
        weight, barred = self.policy.text.head.weight, batch.barred
        size = max(1, LOGIT_BYTES // (4 * len(weight)))
        drawn = []
        for first in range(0, len(uniform_R), size):
            part = slice(first, first + size)
            log_probs = self.distribution.log_probs(batch.hidden_RD[part] @ weight.T)
            pairs = [(row - first, token) for row, token in barred if first <= row < first + size]
            token = _choose(_without(log_probs, pairs), None if greedy else uniform_R[part], self.decoding)
            drawn.append((token, log_probs.gather(-1, token[:, None])[:, 0], entropy_of(log_probs)))
        token_R, logp_R, entropy_R = (torch.cat(column) for column in zip(*drawn, strict=True))
        return token_R, logp_R, entropy_R


def differing_share(a: Sequence[Sequence[Rollout]], b: Sequence[Sequence[Rollout]]) -> float:
    """The share in [0, 1] of rollouts, question by question, whose token ids are not the same; 0 of none."""
    pairs = [pair for rows in zip(a, b, strict=True) for pair in zip(*rows, strict=True)]
    return sum(x.token_ids != y.token_ids for x, y in pairs) / max(1, len(pairs))


def _without(log_probs_RV: Tensor, barred: Sequence[tuple[int, int]]) -> Tensor:
    """-inf for the (row, token) pairs in `barred`; no longer normalised there."""
    if not barred:
        return log_probs_RV
    rows, tokens = torch.tensor(barred, device=log_probs_RV.device).T
    return log_probs_RV.index_put((rows, tokens), log_probs_RV.new_tensor(-torch.inf))


def _choose(log_probs_RV: Tensor, uniform_R: Tensor | None, decoding: DecodingConfig) -> Tensor:
    """Greedy without draws; else the inverse of the cumulative distribution, over the top-p nucleus if asked."""
    if uniform_R is None:
        return log_probs_RV.argmax(-1)
    probs = log_probs_RV.double().exp()
    if decoding.top_p < 1.0:
        probs = _nucleus(probs, decoding.top_p)
    cumulative = probs.cumsum(-1)
    total = cumulative[:, -1:].contiguous()
    token = torch.searchsorted(cumulative, uniform_R[:, None] * total, right=True)
    # Rounding can reach the total: then the last token of positive probability, never a banned one behind it.
    return token.minimum(torch.searchsorted(cumulative, total))[:, 0]


def _nucleus(probs_RV: Tensor, top_p: float) -> Tensor:
    """Zero all but the smallest set of tokens whose share of the whole reaches `top_p`."""
    ranked, order = probs_RV.sort(-1, descending=True)
    outside = ranked.cumsum(-1) - ranked >= top_p * ranked.sum(-1, keepdim=True)
    return torch.zeros_like(probs_RV).scatter(-1, order, ranked.masked_fill(outside, 0.0))
