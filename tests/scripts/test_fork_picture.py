"""The picture of forking tokens: which responses it shows, and that it is drawn."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mm_spine.benchmarks.digits import MODEL_DIR
from mm_spine.files.rollout_table import ROLLOUT_SCHEMA
from mm_spine.reporting.token_text import load_tokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts" / "study"))

import fork_picture


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run whose first step asked two questions, two rollouts each."""
    (tmp_path / "adapted").mkdir()
    shutil.copy(MODEL_DIR / "tokenizer.json", tmp_path / "adapted")
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer is not None
    rows = []
    for index, text in enumerate(("the sum is 3", "the sum is 4", "the digits", "no")):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        rows.append(
            dict.fromkeys(ROLLOUT_SCHEMA.names)
            | {"step": 0, "question_id": "ab"[index // 2], "index": index % 2, "text": text, "token_ids": ids,
               "entropy": [0.5] * len(ids), "selected": [place == 1 for place in range(len(ids))]}
        )  # fmt: skip
    (tmp_path / "rollouts").mkdir()
    table = pa.Table.from_pylist(rows, ROLLOUT_SCHEMA)
    pq.write_table(table, tmp_path / "rollouts" / "step_000000.parquet")
    return tmp_path


def test_the_first_rollout_of_each_question_is_shown(run: Path, tmp_path: Path) -> None:
    found = fork_picture.read_responses(run)
    assert ["".join(token.text for token in response) for response in found] == ["the sum is 3", "the digits"]
    assert [token.fork for token in found[0]][:3] == [False, True, False] and found[0][0].entropy == 0.5
    assert len(fork_picture.read_responses(run, 1)) == 1
    fork_picture.draw(found, tmp_path / "forks.png")
    with Image.open(tmp_path / "forks.png") as drawn:
        colours = drawn.convert("RGB").getcolors(1 << 20)
    assert colours is not None and len(colours) > 10


def test_a_run_without_rollouts_has_no_picture(run: Path) -> None:
    shutil.rmtree(run / "rollouts")
    assert fork_picture.read_responses(run) == []
