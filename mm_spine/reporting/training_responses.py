"""A few responses from training, read from the saved rollouts for the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from tokenizers import Tokenizer

from mm_spine.files.rollout_table import read_rollout_table
from mm_spine.reporting.formats import shortened
from mm_spine.reporting.saved_run import Json, shown_step
from mm_spine.reporting.token_text import token_texts

HEAD, TAIL = 500, 200
"""Tokens that the page shows at the start and at the end of a long response."""

COLUMNS = (
    "question_id", "index", "text", "answer", "vote", "reward", "finish_reason", "token_ids", "logp", "entropy",
    "selected", "parent", "fork_at",
)  # fmt: skip


def read_responses(paths: Sequence[Path], question_ids: Sequence[str], each: int) -> dict[str, list[dict[str, Any]]]:
    """Return at most `each` rollouts of each question, from the first and the last step that asked it.

    `paths` are files of rollouts in the order of their steps. A rollout is a mapping of `COLUMNS` and `step`. Raises
    ValueError when a file is damaged.
    """
    asked_in = _files_by_question(paths, set(question_ids))
    wanted: dict[Path, list[str]] = {}
    for question_id, files in asked_in.items():
        for path in dict.fromkeys((files[0], files[-1])):
            wanted.setdefault(path, []).append(question_id)

    responses: dict[str, list[dict[str, Any]]] = {}
    for path in paths:
        if path not in wanted:
            continue
        step = int(path.stem.removeprefix("step_"))
        table = read_rollout_table(path, COLUMNS)
        rollouts = table.filter(pc.is_in(table["question_id"], pa.array(wanted[path]))).to_pylist()
        for question_id in dict.fromkeys(rollout["question_id"] for rollout in rollouts):
            of_question = [rollout for rollout in rollouts if rollout["question_id"] == question_id]
            steps = len({asked_in[question_id][0], asked_in[question_id][-1]})
            chosen = _choose(of_question, each // steps)
            responses.setdefault(question_id, []).extend({**rollout, "step": step} for rollout in chosen)
    return responses


def _files_by_question(paths: Sequence[Path], question_ids: set[str]) -> dict[str, list[Path]]:
    """Return, for each question, the files that hold rollouts of it."""
    files: dict[str, list[Path]] = {}
    for path in paths if question_ids else ():
        asked = pc.unique(read_rollout_table(path, ("question_id",))["question_id"]).to_pylist()
        for question_id in question_ids.intersection(asked):
            files.setdefault(question_id, []).append(path)
    return files


def _choose(rollouts: Sequence[dict[str, Any]], n: int) -> list[dict[str, Any]]:
    """Take one rollout that agrees with the vote, one that does not, then the others in their order, `n` in all."""
    agree = [rollout for rollout in rollouts if _won(rollout)]
    differ = [rollout for rollout in rollouts if not _won(rollout)]
    first = [*agree[:1], *differ[:1]]
    others = [rollout for rollout in rollouts if not any(rollout is chosen for chosen in first)]
    return [*first, *others][:n]


def _won(rollout: Json) -> bool:
    return rollout["vote"] is not None and bool(rollout["answer"] == rollout["vote"])


def response_for_page(rollout: Mapping[str, Any], tokenizer: Tokenizer | None) -> dict[str, Any]:
    """Return a rollout as the JSON that page.js shows.

    With a tokenizer: the text of each token, entropies and log-probs in nats rounded to three decimals, and which
    tokens were selected. Without one: the text.
    """
    shown = {name: rollout[name] for name in ("index", "finish_reason", "parent", "fork_at")}
    shown["step"] = int(shown_step(rollout["step"]))
    shown["answer"] = None if rollout["answer"] is None else shortened(rollout["answer"], 80, 40)
    shown["won"] = _won(rollout)
    shown["reward"] = _rounded(rollout["reward"])
    ids = rollout["token_ids"] or []
    shown["length"] = len(ids)
    if tokenizer is None or not ids or min(ids) < 0:
        return {**shown, "text": shortened(rollout["text"] or "")}
    kept = list(range(len(ids)))
    cut = None
    if len(ids) > HEAD + TAIL:
        kept = [*range(HEAD), *range(len(ids) - TAIL, len(ids))]
        cut = HEAD
    texts = token_texts(tokenizer, ids)
    selected = _values_at(kept, rollout["selected"], len(ids)) or []
    return {
        **shown,
        "cut": cut,
        "tokens": [texts[i] for i in kept],
        "logp": _values_at(kept, rollout["logp"], len(ids)),
        "entropy": _values_at(kept, rollout["entropy"], len(ids)),
        "selected": [int(bool(flag)) for flag in selected] or None,
    }


def _values_at(places: Sequence[int], values: Sequence[float] | None, length: int) -> list[float | None] | None:
    """Return the values at `places`, rounded; None without one value for each of the `length` tokens."""
    if values is None or len(values) != length:
        return None
    return [_rounded(values[i]) for i in places]


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(float(value), 3)
