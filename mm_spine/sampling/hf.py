"""Rollouts from transformers: prompt and image prefilled once per question, then one growing key-value cache."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from mm_spine.config import DecodingConfig
from mm_spine.draws import uniforms
from mm_spine.objective import entropy_of
from mm_spine.policy.model import Policy
from mm_spine.policy.packed import Prompt
from mm_spine.sampling import Completion, Request
from mm_spine.sampling.backend import Backend


class HFSampler(Backend):
    """Samples from `policy.text` as it stands; nothing to sync. Log-probs and entropies are exact."""

    def __init__(self, policy: Policy, decoding: DecodingConfig, seed: int = 0) -> None:
        super().__init__(policy, decoding, seed)
        eos = policy.model.generation_config.eos_token_id
        self._eos = torch.tensor([eos] if isinstance(eos, int) else list(eos or []), device=policy.device)

    def sync(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Nothing to do: the sampler reads the policy's own weights."""

    @torch.no_grad()
    def complete(
        self, requests: Sequence[Request], *, step: int, purpose: str, greedy: bool = False
    ) -> list[Completion]:
        """See `Backend.complete`; similar prompt lengths are decoded together."""
        found: dict[int, Completion] = {}
        for batch in self._batches(requests):
            rows = [requests[i] for i in batch]
            draws = None if greedy else self._draws(rows, step, purpose)
            ids, logp, entropy = self._decode(rows, draws)
            found |= {i: self._completion(requests[i], ids[k], logp[k], entropy[k]) for k, i in enumerate(batch)}
        return [found[i] for i in range(len(requests))]

    def _batches(self, requests: Sequence[Request]) -> Iterator[list[int]]:
        """Numbers of requests, question by question, as many questions as fit."""
        by_question: dict[int, list[int]] = {}
        for i, request in enumerate(requests):
            by_question.setdefault(id(request.question), []).append(i)
        batch: list[int] = []
        for rows in sorted(by_question.values(), key=lambda r: len(self.policy.prompt(requests[r[0]].question).ids_L)):
            if batch and len(batch) + len(rows) > self.decoding.batch_rows:
                yield batch
                batch = []
            batch += rows
        if batch:
            yield batch

    def _draws(self, requests: Sequence[Request], step: int, purpose: str) -> Tensor:
        length = self.decoding.max_new_tokens
        rows = [uniforms(length, self.seed, purpose, step, r.question.id, r.index) for r in requests]
        return torch.from_numpy(np.stack(rows)).to(self.policy.device)

    def _completion(self, request: Request, ids: Tensor, logp: Tensor, entropy: Tensor) -> Completion:
        start = len(request.prefix)
        ended = torch.isin(ids, self._eos.cpu()).nonzero()[:, 0].tolist()
        stop = max(start, ended[0] + 1 if ended else len(ids))
        own_logp, own_entropy = (values[start:stop].numpy().copy() for values in (logp, entropy))
        return Completion(tuple(ids[start:stop].tolist()), own_logp, own_entropy, "stop" if ended else "length")

    def _decode(self, requests: Sequence[Request], draws_RT: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """(token ids, log-probs, entropies), each (R, T), of requests sorted by question; prefixes are fed as drawn."""
        rows, length = len(requests), self.decoding.max_new_tokens
        questions = {id(r.question): r.question for r in requests}
        counts = Counter(id(r.question) for r in requests)
        state = _prefill(
            self.policy, [self.policy.prompt(q) for q in questions.values()], [counts[i] for i in questions], length
        )
        ids = torch.full((rows, length), int(self._eos[0]) if len(self._eos) else 0, device=self.policy.device)
        logp, entropy = torch.zeros(2, rows, length, device=self.policy.device)
        live = torch.arange(rows, device=self.policy.device)
        going = torch.ones_like(live, dtype=torch.bool)
        for t in range(length):
            log_probs = self.distribution.log_probs(state.hidden_RD @ self.policy.text.head.weight.T)
            barred = _without_barred(log_probs, [requests[i] for i in live.tolist()], t)
            token = _choose(barred, None if draws_RT is None else draws_RT[live, t], self.decoding)
            for k, i in enumerate(live.tolist()):
                token[k] = requests[i].prefix[t] if t < len(requests[i].prefix) else token[k]
            ids[live, t] = token
            logp[live, t] = log_probs.gather(-1, token[:, None])[:, 0]
            entropy[live, t] = entropy_of(log_probs)
            going = going & ~torch.isin(token, self._eos)
            if not going.any() or t + 1 == length:
                break
            if going.sum() < 0.8 * len(going):
                state.keep(going)
                live, token, going = live[going], token[going], going[going]
            state.advance(token)
        return ids.cpu(), logp.cpu(), entropy.cpu()


def _without_barred(log_probs_RV: Tensor, requests: Sequence[Request], t: int) -> Tensor:
    """-inf where a request whose first token comes now bars one."""
    pairs = [(k, v) for k, request in enumerate(requests) if len(request.prefix) == t for v in request.barred]
    if not pairs:
        return log_probs_RV
    at = torch.tensor(pairs, device=log_probs_RV.device).T
    return log_probs_RV.index_put((at[0], at[1]), log_probs_RV.new_tensor(-torch.inf))


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
    """Zero all but the smallest set of tokens whose probability reaches `top_p`."""
    ranked, order = probs_RV.sort(-1, descending=True)
    outside = ranked.cumsum(-1) - ranked >= top_p
    return torch.zeros_like(probs_RV).scatter(-1, order, ranked.masked_fill(outside, 0.0))


class _Layer(DynamicLayer):
    """Keys and values in one buffer with room for every token to come: no copy per token."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.buffers = [_with_room(x, self.room) for x in (key_states, value_states)]
            self.used = 0
        end = self.used + key_states.shape[-2]
        for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[..., self.used : end, :] = new
        self.used = end
        self.keys, self.values = (buffer[..., :end, :] for buffer in self.buffers)
        return self.keys, self.values

    def map(self, function: Any) -> None:
        """Replace both buffers by `function` of them (repeat or select rows)."""
        self.buffers = [function(buffer) for buffer in self.buffers]


def _cache(layers: list[_Layer]) -> DynamicCache:
    cache = DynamicCache()
    cache.layers = list(layers)
    return cache


def _with_room(states: Tensor, room: int) -> Tensor:
    batch, heads, length, width = states.shape
    return states.new_empty(batch, heads, length + room, width)


class _State:
    """Rows being decoded: hidden state of the last token, cache, which keys are real, next positions."""

    def __init__(self, text: Any, layers: list[_Layer], hidden_RD: Tensor, mask_RK: Tensor, position_R: Tensor) -> None:
        self.text, self.layers, self.cache = text, layers, _cache(layers)
        self.hidden_RD, self.mask_RK, self.position_R = hidden_RD, mask_RK, position_R

    def keep(self, rows: Tensor) -> None:
        """Drop the finished rows."""
        for layer in self.layers:
            layer.map(lambda buffer: buffer[rows])
        self.mask_RK, self.position_R = self.mask_RK[rows], self.position_R[rows]

    def advance(self, token_R: Tensor) -> None:
        """Feed one token per row."""
        self.mask_RK = torch.cat([self.mask_RK, self.mask_RK.new_ones(len(token_R), 1)], dim=1)
        nowhere = token_R.new_zeros(0)
        self.hidden_RD = self.text.hidden(
            token_R[:, None],
            self.position_R.expand(3, -1)[..., None],
            self.mask_RK[:, None, None, :],
            nowhere,
            nowhere,
            past_key_values=self.cache,
            use_cache=True,
        )[:, -1]
        self.position_R = self.position_R + 1


def _prefill(policy: Policy, prompts: Sequence[Prompt], counts: Sequence[int], room: int) -> _State:
    """Run each prompt once, left-padded to the longest, then repeat its cache for its rows."""
    width = max(len(p.ids_L) for p in prompts)
    pads = torch.tensor([width - len(p.ids_L) for p in prompts], device=policy.device)
    at = torch.arange(width, device=policy.device)
    real_BL = at >= pads[:, None]
    own_BLL = (at[:, None] >= at) & (real_BL[:, None, :] | (at[:, None] == at))
    layers = [_Layer(room) for _ in policy.text.language_model.layers]
    hidden = policy.text.hidden(
        torch.stack([_left_pad(p.ids_L, width) for p in prompts]),
        torch.stack([_left_pad(p.positions_3L, width) for p in prompts], dim=1),
        own_BLL[:, None],
        torch.cat([(row + 1) * width - len(p.ids_L) + p.image_at_I for row, p in enumerate(prompts)]),
        torch.cat([p.features_ID for p in prompts]),
        past_key_values=_cache(layers),
        use_cache=True,
    )[:, -1]
    row_R = torch.arange(len(prompts)).repeat_interleave(torch.tensor(counts)).to(policy.device)
    for layer in layers:
        layer.map(lambda buffer: buffer[row_R])
    next_R = torch.tensor([p.next_position for p in prompts], device=policy.device)
    return _State(policy.text, layers, hidden[row_R], real_BL[row_R], next_R[row_R])


def _left_pad(values: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(values, (width - values.shape[-1], 0))
