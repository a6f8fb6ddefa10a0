"""What the saved rollouts say of tokens: how entropy is spread, which tokens fork, and a few responses to read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tokenizers import Tokenizer

from mm_spine.reporting.folder import inside
from mm_spine.rollout_table import read_rollout_table

MAX_STEPS = 60
"""Rollout files that the histogram and the token table read, spread evenly over the run."""

BIN = 0.01
"""Width in nats of the bins that are counted; figures join several."""

LARGEST = 20.0
"""Nats; the logarithm of any vocabulary is less."""

TOKENS_SHOWN = 30
HEAD, TAIL = 500, 200
"""Tokens of a response that the page shows; what lies between is left out, and counted."""


@dataclass(frozen=True)
class Fork:
    """A token that was selected `count` times, with the mean entropy there (nats) and the share of its occurrences."""

    token: int
    count: int
    entropy: float
    share: float


@dataclass(frozen=True, eq=False)
class Spread:
    """Entropy over tokens: counts per bin of `BIN` nats, selected and others, and the selected tokens by frequency.

    `threshold` is the lowest entropy selected in a response, at 10, 50 and 90 % of the responses; None where the
    selection does not go by entropy, or takes every token. `read` of `steps` files were read. `branched`: some
    responses are branches of a tree, whose shared tokens are counted in each.
    """

    selected_B: np.ndarray
    others_B: np.ndarray
    threshold: tuple[float, float, float] | None
    forks: tuple[Fork, ...]
    read: int
    steps: int
    branched: bool = False


class Flat(NamedTuple):
    """Tokens of many responses in one row each, T in all; `starts_R` is where each response begins."""

    ids_T: np.ndarray
    entropy_T: np.ndarray
    selected_T: np.ndarray
    starts_R: np.ndarray
    branched: bool


def spread(paths: Sequence[Path]) -> Spread | None:
    """Counts over at most `MAX_STEPS` of the files, evenly spread; None where none has entropies and a selection.

    Raises ValueError naming a file that cannot be read.
    """
    if not paths:
        return None
    chosen = sorted(set(np.linspace(0, len(paths) - 1, MAX_STEPS).round().astype(int)))
    parts = [part for part in (_flat(paths[i]) for i in chosen) if part is not None]
    if not parts:
        return None
    selected = sum((_counts(part.entropy_T[part.selected_T]) for part in parts), np.zeros(_BINS, np.int64))
    others = sum((_counts(part.entropy_T[~part.selected_T]) for part in parts), np.zeros(_BINS, np.int64))
    branched = any(part.branched for part in parts)
    return Spread(selected, others, _threshold(parts), _forks(parts), len(parts), len(paths), branched)


_BINS = round(LARGEST / BIN)


def _flat(path: Path) -> Flat | None:
    table = read_rollout_table(path, ("token_ids", "entropy", "selected", "parent"))
    branched = table["parent"].null_count < table.num_rows
    table = table.drop_columns(["parent"])
    known = pc.and_(pc.is_valid(table["entropy"]), pc.is_valid(table["selected"]))
    lists = [column.combine_chunks() for column in table.filter(known).columns]
    lengths = [np.asarray(pc.list_value_length(column)) for column in lists]
    if any(not np.array_equal(lengths[0], other) for other in lengths[1:]):
        raise ValueError(f"{path}: token_ids, entropy and selected differ in length; the file is damaged")
    kept = lengths[0][lengths[0] > 0]
    if kept.size == 0:
        return None
    ids, entropy, selected = (column.flatten().to_numpy(zero_copy_only=False) for column in lists)
    starts = np.concatenate([[0], np.cumsum(kept)[:-1]])
    return Flat(ids, np.nan_to_num(entropy.astype(np.float64)), selected.astype(bool), starts, branched)


def _counts(entropy_T: np.ndarray) -> np.ndarray:
    bins = np.clip((entropy_T / BIN).astype(np.int64), 0, _BINS - 1)
    return np.bincount(bins, minlength=_BINS)


def _threshold(parts: Iterable[Flat]) -> tuple[float, float, float] | None:
    """Where nearly every response splits into an upper and a lower side; float16 rounds, so sides may touch."""
    lows = []
    split = []
    for part in parts:
        low = np.minimum.reduceat(np.where(part.selected_T, part.entropy_T, np.inf), part.starts_R)
        top = np.maximum.reduceat(np.where(part.selected_T, -np.inf, part.entropy_T), part.starts_R)
        both = np.isfinite(low) & np.isfinite(top)
        lows.append(low[both])
        split.append(low[both] >= top[both])
    low_R, split_R = np.concatenate(lows), np.concatenate(split)
    if low_R.size == 0 or split_R.mean() < 0.9:
        return None
    at_10, at_50, at_90 = np.quantile(low_R, (0.1, 0.5, 0.9))
    return float(at_10), float(at_50), float(at_90)


def _forks(parts: Iterable[Flat]) -> tuple[Fork, ...]:
    selected: dict[int, int] = {}
    nats: dict[int, float] = {}
    occurring: dict[int, int] = {}
    for part in parts:
        ids, place = np.unique(part.ids_T, return_inverse=True)
        chosen = np.bincount(place, part.selected_T)
        entropy = np.bincount(place, np.where(part.selected_T, part.entropy_T, 0.0))
        for token, n, h, seen in zip(ids.tolist(), chosen, entropy, np.bincount(place), strict=True):
            selected[token] = selected.get(token, 0) + int(n)
            nats[token] = nats.get(token, 0.0) + float(h)
            occurring[token] = occurring.get(token, 0) + int(seen)
    often = sorted((token for token in selected if selected[token]), key=lambda token: (-selected[token], token))
    return tuple(
        Fork(token, selected[token], nats[token] / selected[token], selected[token] / occurring[token])
        for token in often[:TOKENS_SHOWN]
    )


def load_tokenizer(run: Path) -> Tokenizer | None:
    """The run's own tokenizer, from adapted/; None where there is none, or it cannot be read."""
    path = run / "adapted" / "tokenizer.json"
    if not path.is_file() or not inside(path, run):
        return None
    try:
        return load_tokenizer_file(path)
    except Exception:  # the library raises bare Exception on what it cannot parse
        return None


def load_tokenizer_file(path: Path) -> Tokenizer:
    """A tokenizer.json. Raises Exception, the library's choice, where it is none."""
    return Tokenizer.from_file(str(path))


def pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """The text of each token. Tokens that only together make a character share it: the last one holds it."""
    texts: list[str] = []
    held: list[int] = []
    for token in ids:
        held.append(token)
        text = _spaced(tokenizer, held)
        whole = not text.endswith("\ufffd") or len(held) == 4  # UTF-8 takes four bytes at most
        texts.append(text if whole else "")
        held = [] if whole else held
    if held:
        texts[-1] = _spaced(tokenizer, held)
    return texts


def _spaced(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Decoded alone; SentencePiece's mark of a leading space is lost at the start of a text, and is put back."""
    text = tokenizer.decode(list(ids), skip_special_tokens=False)
    marked = (tokenizer.id_to_token(ids[0]) or "").startswith("\u2581")
    return f" {text}" if marked and not text.startswith(" ") else text


COLUMNS = (
    "question_id", "index", "text", "answer", "vote", "reward", "finish_reason", "token_ids", "logp", "entropy",
    "selected", "parent", "fork_at",
)  # fmt: skip


def responses(paths: Sequence[Path], wanted: Sequence[str], each: int) -> dict[str, list[dict[str, Any]]]:
    """Question id -> at most `each` rows of its rollouts: from the first and the last step that asked it.

    Of a step, one that gave the winning answer and one that did not come first. Raises ValueError for a damaged file.
    """
    places = _places(paths, set(wanted))
    steps: dict[Path, list[str]] = {}
    for question_id, found in places.items():
        for path in dict.fromkeys((found[0], found[-1])):
            steps.setdefault(path, []).append(question_id)
    shown: dict[str, list[dict[str, Any]]] = {}
    for path in paths:
        for question_id, rows in _rows(path, steps.get(path, ())).items():
            ends = len({places[question_id][0], places[question_id][-1]})
            step = int(path.stem.removeprefix("step_"))
            shown.setdefault(question_id, []).extend({**row, "step": step} for row in _telling(rows, each // ends))
    return shown


def _places(paths: Sequence[Path], wanted: set[str]) -> dict[str, list[Path]]:
    places: dict[str, list[Path]] = {}
    for path in paths if wanted else ():
        asked = pc.unique(read_rollout_table(path, ("question_id",))["question_id"]).to_pylist()
        for question_id in wanted.intersection(asked):
            places.setdefault(question_id, []).append(path)
    return places


def _rows(path: Path, wanted: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    if wanted:
        table = read_rollout_table(path, COLUMNS)
        for row in table.filter(pc.is_in(table["question_id"], pa.array(list(wanted)))).to_pylist():
            groups.setdefault(row["question_id"], []).append(row)
    return groups


def _telling(rows: Sequence[dict[str, Any]], n: int) -> list[dict[str, Any]]:
    """The first that agrees with the vote, the first that does not, then the others in their order."""
    agree = [row for row in rows if row["vote"] is not None and row["answer"] == row["vote"]]
    differ = [row for row in rows if row["vote"] is None or row["answer"] != row["vote"]]
    first = [*agree[:1], *differ[:1]]
    return [*first, *(row for row in rows if not any(row is chosen for chosen in first))][:n]


def token_row(row: Mapping[str, Any], tokenizer: Tokenizer | None) -> dict[str, Any]:
    """A response for the page: texts, entropies and log-probs (nats, rounded), which tokens trained; plain text only
    where there is no tokenizer."""
    head = {name: row[name] for name in ("step", "index", "finish_reason", "parent", "fork_at")}
    head["answer"] = None if row["answer"] is None else shortened(row["answer"], 80, 40)
    head |= {"won": row["vote"] is not None and row["answer"] == row["vote"], "reward": _rounded(row["reward"])}
    ids = row["token_ids"] or []
    head["length"] = len(ids)
    if tokenizer is None or not ids or min(ids) < 0:
        return {**head, "text": shortened(row["text"] or "")}
    kept = [*range(len(ids))] if len(ids) <= HEAD + TAIL else [*range(HEAD), *range(len(ids) - TAIL, len(ids))]
    texts = pieces(tokenizer, ids)
    return {
        **head,
        "cut": HEAD if len(kept) < len(ids) else None,
        "tokens": [texts[i] for i in kept],
        "logp": _taken(row["logp"], kept, len(ids)),
        "entropy": _taken(row["entropy"], kept, len(ids)),
        "selected": [int(bool(flag)) for flag in _taken(row["selected"], kept, len(ids)) or []] or None,
    }


def _taken(values: Sequence[float] | None, kept: Sequence[int], length: int) -> list[float | None] | None:
    if values is None or len(values) != length:
        return None
    return [_rounded(values[i]) for i in kept]


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(float(value), 3)


def shortened(text: str, head: int = 1600, tail: int = 600) -> str:
    """`text`, its middle left out where it is long, with the number of characters."""
    if len(text) <= head + tail:
        return text
    return f"{text[:head]}\n[... {len(text) - head - tail:,} characters left out ...]\n{text[-tail:]}"
