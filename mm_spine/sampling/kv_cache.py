"""Keys and values while decoding: one copy for each prompt, and one row for each response.

The queries of a step read both and merge the two parts by the log-sum-exp of their scores, as `policy.tree_attention`
does for token trees. Classes with `attend` are the `context` that a forward passes on to the attention.
Shape suffixes: B prompts, R rows (responses), M prefixes, N most rows of a prompt, P tokens of a row in this forward,
H key heads, X queries of a key head, D width of a head or of the hidden states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from mm_spine.policy import attention
from mm_spine.policy.kernels import attend, mutual_bias, padding_bias
from mm_spine.policy.model import Policy
from mm_spine.policy.packed import Prompt

T = TypeVar("T")

PREFILL_TOKENS = 2**14
"""The most tokens of one forward over prompts or prefixes, padding included; a longer one gets its own forward."""

SHORTEST = 0.5
"""Share of the longest in a forward. Shorter ones wait for the next, so that at most half of a forward is padding."""


def token_bytes(language_model: Any) -> int:
    """Return the bytes of one token's keys and values in all layers."""
    config = language_model.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * width
    return int(numbers * language_model.dtype.itemsize)


def held_tokens(prompt_lengths: Sequence[int], rows: int, room: int) -> int:
    """Return for how many tokens keys and values are held: prompts padded to the longest, and `rows` of `room`."""
    return len(prompt_lengths) * max(prompt_lengths, default=0) + rows * room


class KeyValues:
    """Keys and values of rows: for each layer a tensor (2, rows, key heads, tokens, width of a head)."""

    # Tensors are replaced layer by layer, so that no more than one layer is in memory twice.

    def __init__(self, layers: Sequence[Tensor] = ()) -> None:
        self.layers = list(layers)

    @property
    def bytes(self) -> int:
        return sum(layer.nbytes for layer in self.layers)

    def keep(self, rows: np.ndarray, width: int) -> None:
        """Keep only `rows`, and only the first `width` tokens of each."""
        self.layers = self.layers if len(rows) else []
        for i, layer in enumerate(self.layers):
            self.layers[i] = layer[:, :, :, :width].index_select(1, torch.from_numpy(rows).to(layer.device))

    def join(self, other: KeyValues) -> None:
        """Append the rows of `other`, and empty `other`."""
        if not self.layers:
            self.layers, other.layers = other.layers, []
            return
        for i, layer in enumerate(self.layers):
            parts, other.layers[i] = (layer, other.layers[i]), layer[:0]
            width = max(part.shape[3] for part in parts)
            wide = [part if part.shape[3] == width else pad(part, (0, 0, 0, width - part.shape[3])) for part in parts]
            self.layers[i] = torch.cat(wide, dim=1)


class Prompts(KeyValues):
    """Keys and values of B prompts, right-padded with finite values, and the hidden states that predict what follows.

    `slots` maps a prompt to its place among the B.
    """

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy
        self.length_B, self.next_position_B = np.zeros((2, 0), np.int64)
        self.hidden_BD = torch.empty(0, policy.text.language_model.config.hidden_size)
        self.slots: dict[Prompt, int] = {}

    def add(self, prompts: Sequence[Prompt]) -> None:
        """Prefill the prompts, which come longest first, each once."""
        for chunk in chunks(prompts, lambda prompt: len(prompt.ids_L)):
            run = PromptPass()
            hidden_BD = run.forward(self.policy, chunk)
            self.hidden_BD = torch.cat([self.hidden_BD.to(hidden_BD), hidden_BD])
            self.slots |= {prompt: len(self.length_B) + i for i, prompt in enumerate(chunk)}
            self.length_B = np.append(self.length_B, [len(p.ids_L) for p in chunk])
            self.next_position_B = np.append(self.next_position_B, [p.next_position for p in chunk])
            self.join(run.held)

    def keep_only(self, needed_B: np.ndarray) -> np.ndarray:
        """Drop the prompts where `needed_B` is False. Return the new slot of each old one."""
        new_B = needed_B.cumsum() - 1
        if not needed_B.all():
            kept = np.flatnonzero(needed_B)
            self.length_B, self.next_position_B = self.length_B[kept], self.next_position_B[kept]
            self.hidden_BD = self.hidden_BD[torch.from_numpy(kept)]
            self.slots = {prompt: int(new_B[slot]) for prompt, slot in self.slots.items() if needed_B[slot]}
            self.keep(kept, int(max(self.length_B, default=0)))
        return new_B


def chunks(items: Sequence[T], length: Callable[[T], int]) -> Iterator[Sequence[T]]:
    """Yield runs of `items`, which come longest first: at most PREFILL_TOKENS padded tokens, of similar lengths."""
    run: list[T] = []
    for item in items:
        longest = length(run[0]) if run else 0
        if run and ((len(run) + 1) * longest > PREFILL_TOKENS or length(item) < SHORTEST * longest):
            yield run
            run = []
        run.append(item)
    if run:
        yield run


class PromptPass:
    """A forward over prompts, whose keys and values it collects in `held`."""

    # Attention is causal and padding comes last, so that no mask is needed, but for tokens that read both ways.

    def __init__(self) -> None:
        self.held = KeyValues()
        self.bias: Tensor | None = None

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        self.held.layers.append(torch.stack([key, value]))
        return attend(query, key, value, scale, self.bias, causal=self.bias is None)[0].transpose(1, 2)

    def forward(self, policy: Policy, prompts: Sequence[Prompt]) -> Tensor:
        """Return the last hidden state of each prompt, (B, D)."""
        ends = [len(prompt.ids_L) for prompt in prompts]
        width = max(ends)
        if any(prompt.mutual for prompt in prompts):
            self.bias = mutual_bias(width, [p.mutual for p in prompts], policy.text.head.weight)
        hidden = policy.text.hidden(
            torch.stack([pad(p.ids_L, (0, width - len(p.ids_L))) for p in prompts]),
            torch.stack([pad(p.positions_3L, (0, width - len(p.ids_L))) for p in prompts], dim=1),
            attention.no_mask(policy.device),
            torch.cat([row * width + p.image_at_I for row, p in enumerate(prompts)]),
            torch.cat([p.features_ID for p in prompts]),
            use_cache=False,
            context=self,
        )
        return hidden[torch.arange(len(ends)), torch.tensor(ends) - 1]


class Sharing:
    """Which prompt each of R rows reads: rows `grid_BN[b]` read the b-th prompt, and row r stands at `place_R[r]`.

    The B prompts are all that are held, or copies of a few if the rows read only those, as prefixes may.
    """

    def __init__(self, slot_R: np.ndarray, prompts: Prompts) -> None:
        self.prompts, device = prompts, prompts.policy.device
        self.next_position_R = torch.from_numpy(prompts.next_position_B[slot_R]).to(device)
        self.length_B, self.few = prompts.length_B, None
        used, among_used_R = np.unique(slot_R, return_inverse=True)
        if 2 * len(used) < len(self.length_B):
            slot_R, self.length_B, self.few = among_used_R, self.length_B[used], torch.from_numpy(used).to(device)
        counts = np.bincount(slot_R, minlength=len(self.length_B))
        order = np.argsort(slot_R, kind="stable")
        column_R = np.empty_like(slot_R)
        column_R[order] = np.arange(len(slot_R)) - (counts.cumsum() - counts)[slot_R[order]]
        grid_BN = np.zeros((len(counts), max(counts)), np.int64)
        grid_BN[slot_R, column_R] = np.arange(len(slot_R))
        self.grid_BN, slot, column = (torch.from_numpy(x).to(device) for x in (grid_BN, slot_R, column_R))
        self.place_R = (slot, column)

    def _read(self, layer: int) -> Tensor:
        held = self.prompts.layers[layer]
        return held if self.few is None else held.index_select(1, self.few)

    @cached_property
    def bias(self) -> Tensor | None:
        """The bias of the prompts' keys, None without padding."""
        width = int(max(self.prompts.length_B))
        ends = torch.from_numpy(self.length_B).to(self.grid_BN.device)
        return None if min(self.length_B) == width else padding_bias(width, ends, self.prompts.layers[0].dtype)

    def attend(self, layer: int, query_RHXD: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Attend on the prompts' keys, in one product for all rows of a prompt.

        Return output (R, H, X, D) and log-sum-exp (R, H, X).
        """
        key, value = self._read(layer)
        grid = query_RHXD[self.grid_BN].transpose(1, 2)
        found = attend(grid.flatten(2, 3), key, value, scale, self.bias)
        slot, column = self.place_R
        out, lse = (x.unflatten(2, grid.shape[2:4])[slot, :, column] for x in found)
        return out, lse

    def merged(self, layer: int, query: Tensor, own: Tensor, own_lse: Tensor, scale: float) -> Tensor:
        """Merge `own`, what `query` (R, H, X, D) reads of its own row, with what it reads of its prompt."""
        out, lse = self.attend(layer, query, scale)
        share = torch.sigmoid(lse - own_lse)[..., None]
        return torch.lerp(own.to(share.dtype), out.to(share.dtype), share).to(query.dtype)


@dataclass(frozen=True, eq=False)
class StepPass:
    """A forward over one more token of each row, whose keys and values go to the column `at_R` of its room."""

    sharing: Sharing
    responses: KeyValues
    at_R: np.ndarray

    @cached_property
    def columns(self) -> int:
        return int(self.at_R.max()) + 1

    @cached_property
    def place(self) -> tuple[Any, ...]:
        """The index of the new keys in a layer; a slice if all rows are at one column."""
        if self.at_R.min() == self.at_R.max():
            return slice(None), slice(None), self.columns - 1
        at_R = torch.from_numpy(self.at_R).to(self.responses.layers[0].device)
        return torch.arange(len(at_R), device=at_R.device), slice(None), at_R

    @cached_property
    def bias(self) -> Tensor | None:
        layer = self.responses.layers[0]
        ends = torch.from_numpy(self.at_R + 1).to(layer.device)
        return None if self.at_R.min() == self.at_R.max() else padding_bias(self.columns, ends, layer.dtype)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        room = self.responses.layers[layer]
        for buffer, new in zip(room, (key, value), strict=True):
            buffer[self.place] = new[:, :, 0]
        own_keys, own_values = room[:, :, :, : self.columns]
        folded = query.reshape(len(query), key.shape[1], -1, query.shape[-1])
        own = attend(folded, own_keys, own_values, scale, self.bias)
        return self.sharing.merged(layer, folded, *own, scale).reshape(len(query), 1, query.shape[1], -1)

    def forward(self, policy: Policy, token_R: Tensor) -> Tensor:
        """Return the hidden states (R, D) after `token_R`."""
        at_R = torch.from_numpy(self.at_R).to(token_R.device)
        position_R = self.sharing.next_position_R + at_R
        return _text(policy, token_R[:, None], position_R[:, None], self)[:, 0]


@dataclass(frozen=True, eq=False)
class PrefixPass:
    """A forward over M prefixes of responses, behind their prompts. Row `rows[i]` starts with prefix `source[i]`."""

    sharing: Sharing
    responses: KeyValues
    rows: Tensor
    source: Tensor

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        room, length = self.responses.layers[layer], key.shape[2]
        for buffer, new in zip(room, (key, value), strict=True):
            buffer[self.rows, :, :length] = new[self.source]
        heads = (key.shape[1], -1)
        own, lse = attend(query, key, value, scale, causal=True)
        folded, own = (x.unflatten(1, heads).flatten(2, 3) for x in (query, own))
        merged = self.sharing.merged(layer, folded, own, lse.unflatten(1, heads).flatten(2, 3), scale)
        return merged.reshape(query.shape).transpose(1, 2)

    def forward(self, policy: Policy, prefixes: Sequence[tuple[int, ...]]) -> Tensor:
        """Return the hidden states (M, P, D) of the prefixes, right-padded to the longest."""
        width = max(map(len, prefixes))
        ids_MP = torch.tensor([[*prefix, *[0] * (width - len(prefix))] for prefix in prefixes], device=policy.device)
        position_MP = self.sharing.next_position_R[:, None] + torch.arange(width, device=policy.device)
        return _text(policy, ids_MP, position_MP, self)


def _text(policy: Policy, ids_RP: Tensor, position_RP: Tensor, context: Any) -> Tensor:
    """Run text tokens (R, P) through the language model: no image stands among them."""
    nowhere, mask = ids_RP.new_zeros(0), attention.no_mask(policy.device)
    return policy.text.hidden(
        ids_RP, position_RP.expand(3, -1, -1), mask, nowhere, nowhere, use_cache=False, context=context
    )
