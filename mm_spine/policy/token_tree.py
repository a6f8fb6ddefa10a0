"""The token tree of a question: a radix tree over the token ids of its responses, which holds common prefixes once.

Branches of a tree sampler, identical rollouts and prefixes that are equal by chance are all found by comparing token
ids. Nodes lie depth-first, so that the descendants of a node follow it in one range.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

LEAST_SAVED = 16
"""Tokens that a shared prefix must save to be a node. Below that, one more part of the attention costs more."""


class Node(NamedTuple):
    """Tokens start..stop of a row. They read one another causally; their descendants, stop..end, read all of them."""

    start: int
    stop: int
    end: int


class Tree(NamedTuple):
    """P tokens, depth-first.

    `depth_P` counts the tokens before each one on its path. `places` says for each leaf where its tokens lie.
    """

    ids_P: np.ndarray
    depth_P: np.ndarray
    nodes: tuple[Node, ...]
    places: tuple[np.ndarray, ...]


class _Span(NamedTuple):
    """Tokens begin..shared of the sorted leaves first..last, below the span numbered `parent` (-1: the root)."""

    first: int
    last: int
    begin: int
    shared: int
    parent: int


def token_tree(leaves: Sequence[np.ndarray], least: int = LEAST_SAVED) -> Tree:
    """Return the tree of `leaves` (token ids, possibly none).

    A common prefix is shared if that saves at least `least` tokens.
    """
    order = sorted(range(len(leaves)), key=lambda i: leaves[i].tolist())
    spans = list(_spans([leaves[i] for i in order], least))
    starts = np.cumsum([0, *(span.shared - span.begin for span in spans)]).tolist()
    nodes = _nodes(spans, starts)
    pieces: list[list[np.ndarray]] = [[] for _ in leaves]
    for span, node in zip(spans, nodes, strict=True):
        for i in order[span.first : span.last]:
            pieces[i].append(np.arange(node.start, node.stop))
    ids = [leaves[order[span.first]][span.begin : span.shared] for span in spans]
    depth = [np.arange(span.begin, span.shared) for span in spans]
    return Tree(_joined(ids), _joined(depth), nodes, tuple(_joined(piece) for piece in pieces))


def cut(tokens: np.ndarray, selected: np.ndarray) -> np.ndarray:
    """Return the tokens before the last selected one; none if no token is selected."""
    # The last of them predicts the selected token, and what follows changes nothing.
    at = np.flatnonzero(selected)
    return tokens[: at[-1]] if len(at) else tokens[:0]


def _joined(pieces: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.int64), *pieces])


def _spans(leaves: Sequence[np.ndarray], least: int) -> Iterator[_Span]:
    """Yield the spans of sorted leaves, depth-first: what a range of leaves shares, then the spans of its parts."""
    # Sorted leaves that share a prefix are neighbours. A range is split where neighbours share no more than the range.
    overlaps = [_overlap(a, b) for a, b in pairwise(leaves)]
    stack, count = [(0, len(leaves), 0, -1)] if leaves else [], 0
    while stack:
        first, last, begin, parent = stack.pop()
        single = last - first == 1
        shared = len(leaves[first]) if single else min(overlaps[first : last - 1])
        if shared > begin and (single or (last - first - 1) * (shared - begin) >= least):
            yield _Span(first, last, begin, shared, parent)
            begin, parent, count = shared, count, count + 1
        if not single:
            splits = [i + 1 for i in range(first, last - 1) if overlaps[i] == shared]
            parts = list(pairwise([first, *splits, last]))
            stack.extend((a, b, begin, parent) for a, b in reversed(parts))


def _overlap(a: np.ndarray, b: np.ndarray) -> int:
    """Return the length of the common prefix."""
    shorter = min(len(a), len(b))
    differ = np.flatnonzero(a[:shorter] != b[:shorter])
    return int(differ[0]) if len(differ) else shorter


def _nodes(spans: Sequence[_Span], starts: Sequence[int]) -> tuple[Node, ...]:
    ends = list(starts[1:])
    for i in reversed(range(len(spans))):
        parent = spans[i].parent
        if parent >= 0:
            ends[parent] = max(ends[parent], ends[i])
    return tuple(Node(start, stop, end) for start, stop, end in zip(starts, starts[1:], ends, strict=False))
