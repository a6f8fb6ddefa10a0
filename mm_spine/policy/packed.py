"""All questions of a micro-batch in one row without padding: each prompt once, its responses as a token tree behind it.

With M-RoPE the positions of every branch go on from the prompt's maximum + 1, as they would in a row of its own,
so the result equals the plain forward on every (prompt, response) pair.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mm_spine.policy.image_cache import Features
from mm_spine.policy.token_tree import LEAST_SAVED, Node, Tree, cut, token_tree
from mm_spine.policy.tree_attention import AttentionPlan


@dataclass(frozen=True, eq=False)
class Prompt:
    """An encoded prompt of L tokens with I image tokens, their places, a key and a grid (3, patches) per image, and
    where features come from.

    It holds no features: `features` takes them from the image cache, so that a run's prompts cost little memory.
    """

    ids_L: Tensor
    positions_3L: Tensor
    image_at_I: Tensor
    image_keys: tuple[str, ...]
    image_grids: tuple[Tensor, ...]
    features: Callable[[], Features]

    @property
    def features_ID(self) -> Tensor:
        """The images' features in order, DeepStack's beside the final ones. Hold them no longer than a batch needs."""
        return self.features().wide_IF

    @property
    def next_position(self) -> int:
        """The position of the first response token."""
        return int(self.positions_3L.max()) + 1


class Branches(NamedTuple):
    """One question: its prompt, its leaves' token ids, and per leaf which tokens (T,) are selected; both on the CPU."""

    prompt: Prompt
    leaves: Sequence[Tensor]
    selected: Sequence[Tensor]


class PackedBatch(NamedTuple):
    """One row of P tokens, its attention, and its S distinct predictions: where from, and of which token.

    The K selected tokens of the N leaves are `prediction_K`, put at the flat places `slot_K` of (N, T).
    """

    ids_1P: Tensor
    positions_31P: Tensor
    plan: AttentionPlan
    features_ID: Tensor
    image_at_I: Tensor
    predict_at_S: Tensor
    target_S: Tensor
    prediction_K: Tensor
    slot_K: Tensor
    shape_NT: tuple[int, int]


def pack(rows: Sequence[Branches], least_saved: int = LEAST_SAVED) -> PackedBatch:
    """Questions -> one row. N counts leaves over all questions in order; T is the longest leaf, in tokens."""
    device = rows[0].prompt.ids_L.device
    trees = [tree_of(row, least_saved) for row in rows]
    starts = np.cumsum([0, *(len(r.prompt.ids_L) + len(t.ids_P) for r, t in zip(rows, trees, strict=True))]).tolist()
    laid = list(zip(rows, trees, starts, strict=False))
    longest = max(len(tokens) for row in rows for tokens in row.leaves)
    distinct = _distinct(laid, longest)
    at_S, target_S, prediction_K, slot_K = (torch.from_numpy(x).to(device) for x in distinct)
    return PackedBatch(
        torch.cat([_behind(row.prompt.ids_L, tree.ids_P) for row, tree in zip(rows, trees, strict=True)])[None],
        torch.cat([_positions(row, tree) for row, tree in zip(rows, trees, strict=True)], dim=1)[:, None],
        AttentionPlan(
            tuple(node for each in laid for node in _nodes(*each)), starts[-1], device, np.unique(distinct[0])
        ),
        torch.cat([row.prompt.features_ID for row in rows]),
        torch.cat([start + row.prompt.image_at_I for row, _, start in laid]),
        at_S,
        target_S,
        prediction_K,
        slot_K,
        (sum(len(row.leaves) for row in rows), longest),
    )


def tree_of(row: Branches, least_saved: int = LEAST_SAVED) -> Tree:
    """The token tree behind a prompt. Each leaf ends before its last selected token: nothing later is needed."""
    pairs = zip(row.leaves, row.selected, strict=True)
    return token_tree([cut(tokens.numpy(), selected.numpy()) for tokens, selected in pairs], least_saved)


def row_length(row: Branches) -> int:
    """Tokens that `row` adds to a batch."""
    return len(row.prompt.ids_L) + len(tree_of(row).ids_P)


def _behind(prompt: Tensor, tokens: np.ndarray) -> Tensor:
    return torch.cat([prompt, torch.from_numpy(tokens).to(prompt.device)])


def _positions(row: Branches, tree: Tree) -> Tensor:
    own = torch.from_numpy(row.prompt.next_position + tree.depth_P).to(row.prompt.positions_3L.device)
    return torch.cat([row.prompt.positions_3L, own.expand(3, -1)], dim=1)


def _nodes(row: Branches, tree: Tree, start: int) -> list[Node]:
    first = start + len(row.prompt.ids_L)
    below = [Node(*(first + place for place in node)) for node in tree.nodes]
    return [Node(start, first, first + len(tree.ids_P)), *below]


def _distinct(laid: Sequence[tuple[Branches, Tree, int]], longest: int) -> tuple[np.ndarray, ...]:
    """Each (place, token) pair once, whatever the number of leaves that go through it."""
    all_at, all_targets, slots, leaf = [], [], [], 0
    for row, tree, start in laid:
        first = start + len(row.prompt.ids_L)
        for tokens, selected, places in zip(row.leaves, row.selected, tree.places, strict=True):
            chosen = np.flatnonzero(selected.numpy())
            all_at.append(first + np.concatenate([[-1], places])[chosen])
            all_targets.append(tokens.numpy()[chosen])
            slots.append(leaf * longest + chosen)
            leaf += 1
    at, targets = np.concatenate(all_at), np.concatenate(all_targets)
    pairs, prediction = np.unique(np.stack([at, targets]), axis=1, return_inverse=True)
    return pairs[0].copy(), pairs[1].copy(), prediction.reshape(-1), np.concatenate(slots)
