"""Images in Parquet files stay in the file until they are opened."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from releases import SOURCE, check_image_rows, image_rows, picture, put

from mm_spine.benchmarks.arrow import arrow_rows
from mm_spine.benchmarks.release import open_release
from mm_spine.benchmarks.tables import read_table


def test_images_of_a_parquet_file_are_not_read_with_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image_rows().to_parquet(tmp_path / "test.parquet")
    asked: list[int] = []

    def refuse(path: Path, column: str, row: int) -> None:
        asked.append(row)

    monkeypatch.setattr("mm_spine.benchmarks.arrow._parquet_cell", refuse)
    rows = list(read_table(tmp_path / "test.parquet").rows)
    assert len(rows) == 40 and rows[0]["image"].name == "0.png" and asked == []
    with pytest.raises(FileNotFoundError, match="no bytes of image '17.png'"):
        rows[17]["image"].read_bytes()
    assert asked == [17]


def test_cells_are_found_in_every_row_group(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    image_rows().to_parquet(tmp_path / "data" / "test-0.parquet", batch_size=7)
    check_image_rows(open_release(SOURCE, "test", str(tmp_path)))


def test_a_column_of_names_without_bytes_is_looked_up(tmp_path: Path) -> None:
    cell = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    named = pa.table({"image": pa.array([{"path": "a.png"}, {"path": "gone.png"}, None], cell)})
    put(tmp_path, {"imgs/a.png": picture(5), "data/test-0.parquet": b""})
    pq.write_table(named, tmp_path / "data" / "test-0.parquet")
    release = open_release(SOURCE, "test", str(tmp_path))
    for rows in (release.rows, arrow_rows(named)):
        found = [release.images(row["image"]) for row in rows[:2]]
        assert found == [tmp_path / "imgs/a.png", tmp_path / "gone.png"] and rows[2]["image"] is None
