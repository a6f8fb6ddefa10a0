"""Make, write and read the table of a step's rollouts, a Parquet file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike

from mm_spine.files import atomic
from mm_spine.types import Group, Rollout

ROLLOUT_SCHEMA = pa.schema(
    [
        ("step", pa.int32()),
        ("question_id", pa.string()),
        ("index", pa.int32()),
        ("text", pa.string()),
        ("answer", pa.string()),
        ("vote", pa.string()),
        ("reward", pa.float32()),
        ("advantage", pa.float32()),
        ("finish_reason", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("logp", pa.list_(pa.float32())),
        ("entropy", pa.list_(pa.float16())),
        ("selected", pa.list_(pa.bool_())),
        ("parent", pa.int32()),
        ("fork_at", pa.int32()),
    ]
)
"""One row per rollout; logp and entropy in nats, one value per token; null where the run had none."""


def rollouts_as_table(
    groups: Sequence[Group], step: int, selected: Sequence[Sequence[ArrayLike]] | None = None
) -> pa.Table:
    """Return one step's rollouts as a table with the columns of `ROLLOUT_SCHEMA`.

    `selected[g][i]` is the (T,) token mask of rollout i of group g; without it the column is null.
    Raises ValueError naming the rollout when a per-token column has another length than its tokens.
    """
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    masks = [None] * len(rollouts) if selected is None else [mask for group in selected for mask in group]
    if len(masks) != len(rollouts):
        raise ValueError(f"{len(masks)} token masks for {len(rollouts)} rollouts; give one per rollout")
    columns = {**_group_columns(groups), **_scalar_columns(rollouts, step), **_token_columns(rollouts, masks)}
    return pa.table([columns[name] for name in ROLLOUT_SCHEMA.names], schema=ROLLOUT_SCHEMA)


def write_rollouts(
    path: Path, groups: Sequence[Group], step: int, selected: Sequence[Sequence[ArrayLike]] | None = None
) -> None:
    """Write the table of `rollouts_as_table` as Parquet; an existing file is replaced."""
    table = rollouts_as_table(groups, step, selected)
    with atomic(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_rollout_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read the table of one step, or some columns of it. Raises ValueError naming the file when it cannot be read."""
    try:
        return pq.read_table(path, columns=None if columns is None else list(columns))
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a readable rollout table ({error})") from error


def _group_columns(groups: Sequence[Group]) -> dict[str, pa.Array]:
    """Return the columns whose values stand in the groups: answer, vote, reward, advantage."""
    values: dict[str, list[Any]] = {"answer": [], "vote": [], "reward": [], "advantage": []}
    for group in groups:
        n = len(group.rollouts)
        values["answer"] += group.answers
        values["vote"] += [group.vote.answer] * n
        values["reward"] += [None] * n if group.rewards is None else group.rewards.tolist()
        values["advantage"] += [None] * n if group.advantages is None else group.advantages.tolist()
    return {name: pa.array(column, ROLLOUT_SCHEMA.field(name).type) for name, column in values.items()}


def _scalar_columns(rollouts: Sequence[Rollout], step: int) -> dict[str, pa.Array]:
    columns = {
        name: [getattr(rollout, name) for rollout in rollouts]
        for name in ("question_id", "index", "text", "finish_reason", "parent", "fork_at")
    }
    columns["step"] = [step] * len(rollouts)
    return {name: pa.array(column, ROLLOUT_SCHEMA.field(name).type) for name, column in columns.items()}


def _token_columns(rollouts: Sequence[Rollout], masks: Sequence[ArrayLike | None]) -> dict[str, pa.Array]:
    values: dict[str, Sequence[ArrayLike | None]] = {
        "token_ids": [rollout.token_ids for rollout in rollouts],
        "logp": [rollout.logp for rollout in rollouts],
        "entropy": [rollout.entropy for rollout in rollouts],
        "selected": masks,
    }
    return {name: _lists(name, column, rollouts) for name, column in values.items()}


def _lists(name: str, column: Sequence[ArrayLike | None], rollouts: Sequence[Rollout]) -> pa.ListArray:
    """Return per-token values as one Arrow list array."""
    kind = ROLLOUT_SCHEMA.field(name).type.value_type
    arrays = [np.asarray([] if values is None else values, dtype=kind.to_pandas_dtype()) for values in column]
    missing = [values is None for values in column]
    for rollout, array, absent in zip(rollouts, arrays, missing, strict=True):
        if not absent and len(array) != len(rollout.token_ids):
            raise ValueError(
                f"question {rollout.question_id!r}, rollout {rollout.index}: {name} has {len(array)} values "
                f"for {len(rollout.token_ids)} tokens"
            )
    # Built from one flat buffer: converting many short arrays one by one is slow.
    offsets = np.cumsum([0, *map(len, arrays)], dtype=np.int32)
    flat = np.concatenate(arrays) if arrays else np.empty(0, kind.to_pandas_dtype())
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat, kind), mask=pa.array(missing, pa.bool_()))
