"""Count the tokens of the saved rollouts by their entropy, and find the tokens that are selected most often."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.compute as pc

from mm_spine.files.rollout_table import read_rollout_table

MAX_STEPS = 60
"""Files of rollouts that are read, spread evenly over the run."""

BIN = 0.01
"""Width of a bin in nats; the figure joins several."""

MAX_ENTROPY = 20.0
"""Upper edge of the last bin in nats, above the logarithm of any vocabulary's size."""

BINS = round(MAX_ENTROPY / BIN)

TOKENS_SHOWN = 30
"""Selected tokens that are listed."""

ORDERED_SHARE = 0.9
"""Share of responses that must be selected by entropy for a threshold to be given; the number is ours."""


@dataclass(frozen=True)
class SelectedToken:
    """A token of the vocabulary that was selected to train.

    Attributes:
        token: its number in the vocabulary.
        count: how often it was selected.
        entropy: mean entropy in nats where it was selected.
        share: `count` as a share of all its occurrences.
    """

    token: int
    count: int
    entropy: float
    share: float


@dataclass(frozen=True, eq=False)
class EntropyCounts:
    """Tokens counted by entropy.

    Attributes:
        selected_B, others_B: tokens per bin of `BIN` nats, selected to train and others.
        threshold: the lowest entropy selected in a response, at 10, 50 and 90 % of the responses; None when the
            selection does not go by entropy or takes every token.
        tokens: the tokens selected most often, the most frequent first.
        read, steps: how many files of rollouts were read, and how many there are.
        branched: some responses are branches of a tree. Tokens that branches share are then counted in each.
    """

    selected_B: np.ndarray
    others_B: np.ndarray
    threshold: tuple[float, float, float] | None
    tokens: tuple[SelectedToken, ...]
    read: int
    steps: int
    branched: bool = False


class _FlatTokens(NamedTuple):
    """The tokens of a step's R responses one after the other, T in all; response r begins at `starts_R[r]`."""

    ids_T: np.ndarray
    entropy_T: np.ndarray
    selected_T: np.ndarray
    starts_R: np.ndarray
    branched: bool


def count_by_entropy(paths: Sequence[Path]) -> EntropyCounts | None:
    """Count the tokens of at most `MAX_STEPS` of the files; None when no file has entropies and a selection.

    Raises ValueError naming a file that cannot be read.
    """
    if not paths:
        return None
    chosen = sorted(set(np.linspace(0, len(paths) - 1, MAX_STEPS).round().astype(int)))
    parts = [part for part in (_read_flat(paths[i]) for i in chosen) if part is not None]
    if not parts:
        return None
    selected_B, others_B = np.zeros(BINS, np.int64), np.zeros(BINS, np.int64)
    for part in parts:
        selected_B += _count_bins(part.entropy_T[part.selected_T])
        others_B += _count_bins(part.entropy_T[~part.selected_T])
    return EntropyCounts(
        selected_B=selected_B,
        others_B=others_B,
        threshold=_threshold(parts),
        tokens=_most_selected(parts),
        read=len(parts),
        steps=len(paths),
        branched=any(part.branched for part in parts),
    )


def _read_flat(path: Path) -> _FlatTokens | None:
    table = read_rollout_table(path, ("token_ids", "entropy", "selected", "parent"))
    branched = table["parent"].null_count < table.num_rows
    table = table.drop_columns(["parent"])
    known = pc.and_(pc.is_valid(table["entropy"]), pc.is_valid(table["selected"]))
    lists = [column.combine_chunks() for column in table.filter(known).columns]
    lengths = [np.asarray(pc.list_value_length(column)) for column in lists]
    if any(not np.array_equal(lengths[0], other) for other in lengths[1:]):
        raise ValueError(f"{path}: token_ids, entropy and selected differ in length; the file is damaged")
    lengths_R = lengths[0][lengths[0] > 0]
    if lengths_R.size == 0:
        return None
    ids, entropy, selected = (column.flatten().to_numpy(zero_copy_only=False) for column in lists)
    starts_R = np.concatenate([[0], np.cumsum(lengths_R)[:-1]])
    return _FlatTokens(ids, np.nan_to_num(entropy.astype(np.float64)), selected.astype(bool), starts_R, branched)


def _count_bins(entropy_T: np.ndarray) -> np.ndarray:
    bins = np.clip((entropy_T / BIN).astype(np.int64), 0, BINS - 1)
    return np.bincount(bins, minlength=BINS)


def _threshold(parts: Iterable[_FlatTokens]) -> tuple[float, float, float] | None:
    """Return quantiles of the lowest selected entropy if nearly every response is split by entropy, else None."""
    lowest_selected, is_ordered = [], []
    for part in parts:
        lowest = np.minimum.reduceat(np.where(part.selected_T, part.entropy_T, np.inf), part.starts_R)
        highest_other = np.maximum.reduceat(np.where(part.selected_T, -np.inf, part.entropy_T), part.starts_R)
        has_both = np.isfinite(lowest) & np.isfinite(highest_other)
        lowest_selected.append(lowest[has_both])
        # Entropies are saved as float16: after rounding, the two sides may touch.
        is_ordered.append(lowest[has_both] >= highest_other[has_both])
    lowest_R, ordered_R = np.concatenate(lowest_selected), np.concatenate(is_ordered)
    if lowest_R.size == 0 or ordered_R.mean() < ORDERED_SHARE:
        return None
    at_10, at_50, at_90 = np.quantile(lowest_R, (0.1, 0.5, 0.9))
    return float(at_10), float(at_50), float(at_90)


def _most_selected(parts: Iterable[_FlatTokens]) -> tuple[SelectedToken, ...]:
    selected: dict[int, int] = {}
    entropy_sum: dict[int, float] = {}
    occurrences: dict[int, int] = {}
    for part in parts:
        ids, place_T = np.unique(part.ids_T, return_inverse=True)
        counts = np.bincount(place_T, part.selected_T)
        entropies = np.bincount(place_T, np.where(part.selected_T, part.entropy_T, 0.0))
        for token, n, nats, seen in zip(ids.tolist(), counts, entropies, np.bincount(place_T), strict=True):
            selected[token] = selected.get(token, 0) + int(n)
            entropy_sum[token] = entropy_sum.get(token, 0.0) + float(nats)
            occurrences[token] = occurrences.get(token, 0) + int(seen)
    by_count = sorted((token for token in selected if selected[token]), key=lambda token: (-selected[token], token))
    return tuple(
        SelectedToken(
            token=token,
            count=selected[token],
            entropy=entropy_sum[token] / selected[token],
            share=selected[token] / occurrences[token],
        )
        for token in by_count[:TOKENS_SHOWN]
    )
