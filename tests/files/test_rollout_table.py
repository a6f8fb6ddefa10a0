"""The table of rollouts: its columns, and errors that name the file, the question and the rollout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mm_spine.files import rollout_table
from mm_spine.types import Answer, AnswerSpec, Group, Question, Rollout, Vote

# design.md, "Outputs of a run": names, order and dtypes of a rollout table.
COLUMNS = {
    "step": "int32",
    "question_id": "string",
    "index": "int32",
    "text": "string",
    "answer": "string",
    "vote": "string",
    "reward": "float",
    "advantage": "float",
    "finish_reason": "string",
    "token_ids": "list<element: int32>",
    "logp": "list<element: float>",
    "entropy": "list<element: halffloat>",
    "selected": "list<element: bool>",
    "parent": "int32",
    "fork_at": "int32",
}


def rollout(question_id: str, index: int, tokens: tuple[int, ...], *, entropy: bool = True, **more: int) -> Rollout:
    logp = np.linspace(-2.0, -0.1, len(tokens), dtype=np.float32)
    return Rollout(
        question_id, index, tokens, f"text {index} é", logp, (-logp / 2) if entropy else None, "stop", **more
    )


def group(question_id: str, rollouts: tuple[Rollout, ...], credited: bool = True) -> Group:
    n = len(rollouts)
    return Group(
        question=Question(question_id, (), "?", AnswerSpec("integer")),
        rollouts=rollouts,
        answers=("4", *(None for _ in rollouts[1:])),
        parsed=(Answer("4", "4"), *(None for _ in rollouts[1:])),
        vote=Vote("4", 1 / n, {"4": 1}, 1 / n, 1),
        rewards=torch.arange(n).float() if credited else None,
        advantages=-torch.arange(n).float() / 4 if credited else None,
    )


@pytest.fixture
def groups() -> list[Group]:
    branch = rollout("a", 1, (7, 9, 10, 11), parent=0, fork_at=1)
    return [
        group("a", (rollout("a", 0, (7, 8)), branch)),
        group("b", (rollout("b", 0, (5,), entropy=False), rollout("b", 1, ())), credited=False),
    ]


def test_rollouts_survive_the_round_trip(tmp_path: Path, groups: list[Group]) -> None:
    path = tmp_path / "rollouts" / "step_000003.parquet"
    masks = [[[True, False], torch.tensor([False, False, True, True])], [np.array([True]), []]]
    rollout_table.write_rollouts(path, groups, 3, masks)

    schema = pq.read_schema(path)
    assert {field.name: str(field.type) for field in schema} == COLUMNS
    assert schema.names == list(COLUMNS)
    rows = pq.read_table(path).to_pylist()
    assert {r["step"] for r in rows} == {3}
    assert [(r["question_id"], r["index"]) for r in rows] == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    assert [r["answer"] for r in rows] == ["4", None, "4", None]
    assert [r["vote"] for r in rows] == ["4"] * 4
    assert [r["reward"] for r in rows] == [0.0, 1.0, None, None]
    assert [r["advantage"] for r in rows] == [0.0, -0.25, None, None]
    assert [r["selected"] for r in rows] == [[True, False], [False, False, True, True], [True], []]

    back = rollout_table.read_rollout_table(path).to_pylist()
    saved = [rollout for group in groups for rollout in group.rollouts]
    for old, new in zip(saved, back, strict=True):
        for name in ("text", "parent", "fork_at", "finish_reason"):
            assert new[name] == getattr(old, name)
        assert tuple(new["token_ids"]) == old.token_ids
        assert new["logp"] == old.logp.tolist()
        assert new["entropy"] == (None if old.entropy is None else old.entropy.astype(np.float16).tolist())


def test_rollouts_without_masks_and_without_groups(tmp_path: Path, groups: list[Group]) -> None:
    path = tmp_path / "step_1.parquet"
    rollout_table.write_rollouts(path, groups, 1)
    assert pq.read_table(path)["selected"].to_pylist() == [None] * 4
    rollout_table.write_rollouts(path, [], 1)
    assert rollout_table.read_rollout_table(path).num_rows == 0
    assert pq.read_schema(path).names == list(COLUMNS)


def test_a_column_of_the_wrong_length_is_named_and_writes_nothing(tmp_path: Path, groups: list[Group]) -> None:
    path = tmp_path / "step_1.parquet"
    with pytest.raises(ValueError, match="question 'a', rollout 1: selected has 1 values for 4 tokens"):
        rollout_table.write_rollouts(path, groups, 1, [[[True, True], [True]], [[True], []]])
    with pytest.raises(ValueError, match="1 token masks for 4 rollouts"):
        rollout_table.write_rollouts(path, groups, 1, [[[True, True]]])
    assert list(tmp_path.iterdir()) == []


def test_an_unreadable_table_is_named(tmp_path: Path) -> None:
    path = tmp_path / "step_2.parquet"
    path.write_bytes(b"PAR1 torn")
    with pytest.raises(ValueError, match="step_2.parquet: not a readable rollout table"):
        rollout_table.read_rollout_table(path)
    pq.write_table(pa.table({"step": [1]}), path)
    with pytest.raises(ValueError, match="step_2.parquet"):
        rollout_table.read_rollout_table(path, ("text",))
