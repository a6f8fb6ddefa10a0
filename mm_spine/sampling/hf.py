"""Rollouts from transformers, batched continuously: questions join the batch as soon as there is room for them.

A question's prompt and images are prefilled once, and so are prefixes that several requests share. All rows of a
question read one copy of its prompt's keys and values (`kv_cache`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from mm_spine.config import DecodingConfig
from mm_spine.draws import uniforms
from mm_spine.policy.model import Policy
from mm_spine.policy.packed import Prompt
from mm_spine.sampling import Completion, Request
from mm_spine.sampling.backend import Backend, not_finite
from mm_spine.sampling.batch import Batch
from mm_spine.sampling.draw import Drawn, draw
from mm_spine.sampling.kv_cache import held_tokens, token_bytes

LOGIT_BYTES = 64 * 2**20
"""Bytes of the fp32 logits that are made at a time. For a nucleus, several tensors of that size live, some in fp64."""


class Waiting(NamedTuple):
    """A question's prompt and the numbers of its requests that have not begun."""

    prompt: Prompt
    numbers: deque[int]


class HFSampler(Backend):
    """Sample from `policy.text` with its current weights, so that `sync` has only their version to take over.

    Log-probs and entropies are exact.
    """

    def __init__(self, policy: Policy, decoding: DecodingConfig, seed: int = 0) -> None:
        super().__init__(policy, decoding, seed)
        self._ends = np.array(self.ends, np.int64)

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
            drawn = self._draw(batch, greedy)
            # Checked at once: whatever follows from a token that was drawn from NaN would fail somewhere else.
            broken = ~torch.isfinite(drawn.entropy_R).cpu().numpy() & batch.rows.going_R
            if broken.any():
                raise not_finite(requests[batch.rows.number_R[broken.argmax()]])
            batch.record(*drawn, ends=self._ends)
            before = len(done)
            done |= batch.retire(needed=waiting[0].prompt if waiting else None)
            self.on_finished(len(done) - before)
            batch.step()
        return [done[i] for i in range(len(requests))]

    def _questions(self, requests: Sequence[Request], numbers: Sequence[int]) -> deque[Waiting]:
        """Return the requests `numbers` by question, longest prompt first."""
        waiting: dict[Prompt, Waiting] = {}
        for i in numbers:
            prompt = self.policy.prompt(requests[i].question)
            waiting.setdefault(prompt, Waiting(prompt, deque())).numbers.append(i)
        return deque(sorted(waiting.values(), key=lambda question: -len(question.prompt.ids_L)))

    def _joining(self, batch: Batch, waiting: deque[Waiting]) -> list[int]:
        """Take from `waiting` the numbers of the requests that fit beside the running rows.

        Questions join whole; only one that would never fit whole joins in pieces. If nothing runs, at least one
        request joins.
        """
        joining: list[int] = []
        lengths, here = batch.prompts.length_B.tolist(), set(batch.prompts.slots)
        while waiting:
            prompt, numbers = waiting[0]
            begun = prompt in here
            with_own = lengths if begun else [*lengths, len(prompt.ids_L)]
            rows = len(batch.rows) + len(joining)
            fit = max(self._room(with_own) - rows, 0 if rows else 1)
            in_pieces = begun or self._room([len(prompt.ids_L)]) < len(numbers)
            if fit < (1 if in_pieces else len(numbers)):
                break
            joining += [numbers.popleft() for _ in range(min(fit, len(numbers)))]
            lengths, here = with_own, here | {prompt}
            if numbers:
                break
            waiting.popleft()
        return joining

    def _room(self, prompt_lengths: Sequence[int]) -> int:
        """Return how many rows may be held beside prompts of these lengths; negative if the prompts do not fit."""
        length = self.decoding.max_new_tokens
        tokens = int(self.decoding.kv_cache_gb * 1e9) // token_bytes(self.policy.text.language_model)
        return min(self.decoding.batch_rows, (tokens - held_tokens(prompt_lengths, 0, length)) // length)

    def _draws(self, request: Request, step: int, purpose: str, greedy: bool) -> np.ndarray:
        length = self.decoding.max_new_tokens
        name = (self.seed, purpose, step, request.question.id, request.index)
        return np.zeros(length) if greedy else uniforms(length, *name)

    def _draw(self, batch: Batch, greedy: bool) -> Drawn:
        """Draw each row's next token."""
        uniform_R = torch.from_numpy(batch.uniform_R).to(self.policy.device)
        weight, barred = self.policy.text.head.weight, batch.barred
        size = max(1, LOGIT_BYTES // (4 * len(weight)))
        drawn = []
        for first in range(0, len(uniform_R), size):
            part = slice(first, first + size)
            pairs = [(row - first, token) for row, token in barred if first <= row < first + size]
            logits_RV, uniform = batch.hidden_RD[part] @ weight.T, None if greedy else uniform_R[part]
            drawn.append(draw(logits_RV, uniform, self.distribution, barred=pairs, top_p=self.decoding.top_p))
        return Drawn(*(torch.cat(column) for column in zip(*drawn, strict=True)))
