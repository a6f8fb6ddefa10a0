"""All questions of a micro-batch in one row without padding: each prompt once, followed by its token tree.

With M-RoPE the positions of every branch continue from the prompt's maximum + 1, as in a row of its own. So the result
equals the plain forward on every (prompt, response) pair.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mm_spine.policy.image_cache import Features
from mm_spine.policy.token_tree import LEAST_SAVED, Node, Tree, cut, token_tree
from mm_spine.policy.tree_attention import AttentionPlan


@dataclass(frozen=True, eq=False)
class Prompt:
    """An encoded prompt of L tokens, of which I are image tokens at the places `image_at_I`.

    `image_keys` and `image_grids` (3,), as in `EncodedImage`, have one entry per image. The tokens start..stop of each
    span in `mutual` read one another both ways.
    """

    # A prompt holds no features, so that a run can keep all its prompts: `features` takes them from the image cache.

    ids_L: Tensor
    positions_3L: Tensor
    image_at_I: Tensor
    image_keys: tuple[str, ...]
    image_grids: tuple[Tensor, ...]
    features: Callable[[], Features]
    mutual: tuple[tuple[int, int], ...] = ()

    @property
    def features_ID(self) -> Tensor:
        """Features (I, D x (1 + DeepStack layers)) of the images in order. Hold them no longer than a batch needs."""
        return self.features().wide_IF

    @property
    def next_position(self) -> int:
        """The position of the first response token."""
        return int(self.positions_3L.max()) + 1


class Branches(NamedTuple):
    """One question: its prompt, and for each leaf its token ids (T,) and which are selected (T,), both on the CPU."""

    prompt: Prompt
    leaves: Sequence[Tensor]
    selected: Sequence[Tensor]


class PackedBatch(NamedTuple):
    """One row of P tokens, its attention, and its S distinct predictions.

    Prediction s is of token `target_S[s]`, from the hidden state at place `predict_at_S[s]`. Selected token k of the N
    leaves is prediction `prediction_K[k]` and belongs at the flat place `slot_K[k]` of (N, T).
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
    """Pack questions into one row. N counts the leaves of all questions in order; T is the longest leaf, in tokens."""
    device = rows[0].prompt.ids_L.device
    trees = [tree_of(row, least_saved) for row in rows]
    pairs = list(zip(rows, trees, strict=True))
    starts = np.cumsum([0, *(len(row.prompt.ids_L) + len(tree.ids_P) for row, tree in pairs)]).tolist()
    laid = [(row, tree, start) for (row, tree), start in zip(pairs, starts, strict=False)]
    longest = max(len(tokens) for row in rows for tokens in row.leaves)
    distinct = _distinct(laid, longest)
    predict_at_S, target_S, prediction_K, slot_K = (torch.from_numpy(x).to(device) for x in distinct)
    ids = [ids for row, tree in pairs for ids in (row.prompt.ids_L, torch.from_numpy(tree.ids_P).to(device))]
    nodes = tuple(node for each in laid for node in _nodes(*each))
    mutual = frozenset(node for row, tree, start in laid for node in _both_ways(row, tree, start))
    return PackedBatch(
        ids_1P=torch.cat(ids)[None],
        positions_31P=torch.cat([_positions(row, tree) for row, tree in pairs], dim=1)[:, None],
        plan=AttentionPlan(nodes, starts[-1], device, wanted=np.unique(distinct[0]), mutual=mutual),
        features_ID=torch.cat([row.prompt.features_ID for row in rows]),
        image_at_I=torch.cat([start + row.prompt.image_at_I for row, _, start in laid]),
        predict_at_S=predict_at_S,
        target_S=target_S,
        prediction_K=prediction_K,
        slot_K=slot_K,
        shape_NT=(sum(len(row.leaves) for row in rows), longest),
    )


def tree_of(row: Branches, least_saved: int = LEAST_SAVED) -> Tree:
    """Return the token tree behind a prompt, each leaf cut before its last selected token."""
    pairs = zip(row.leaves, row.selected, strict=True)
    return token_tree([cut(tokens.numpy(), selected.numpy()) for tokens, selected in pairs], least_saved)


def row_length(row: Branches) -> int:
    """Return how many tokens `row` adds to a batch."""
    return len(row.prompt.ids_L) + len(tree_of(row).ids_P)


def _positions(row: Branches, tree: Tree) -> Tensor:
    own = torch.from_numpy(row.prompt.next_position + tree.depth_P).to(row.prompt.positions_3L.device)
    return torch.cat([row.prompt.positions_3L, own.expand(3, -1)], dim=1)


def _nodes(row: Branches, tree: Tree, start: int) -> list[Node]:
    first, end = start + len(row.prompt.ids_L), _end(row, tree, start)
    # A span whose tokens read one another both ways is a node of its own, below the text before it.
    cuts = sorted({start, first, *(start + place for span in row.prompt.mutual for place in span)})
    prompt = [Node(begin, stop, end) for begin, stop in pairwise(cuts)]
    return [*prompt, *(Node(*(first + place for place in node)) for node in tree.nodes)]


def _both_ways(row: Branches, tree: Tree, start: int) -> list[Node]:
    return [Node(start + begin, start + stop, _end(row, tree, start)) for begin, stop in row.prompt.mutual]


def _end(row: Branches, tree: Tree, start: int) -> int:
    return start + len(row.prompt.ids_L) + len(tree.ids_P)


def _distinct(laid: Sequence[tuple[Branches, Tree, int]], longest: int) -> tuple[np.ndarray, ...]:
    """Return `predict_at_S`, `target_S`, `prediction_K` and `slot_K` of a `PackedBatch`."""
    # Leaves that share a token share its prediction: each (place, token) pair is projected once.
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
