"""What the rows of a folder show of their images and videos."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pictures import frames_of

from mm_spine.benchmarks import pictures
from mm_spine.benchmarks.folder import load_table
from mm_spine.types import ImagePart


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "scan.tif").write_bytes(frames_of("TIFF"))
    (tmp_path / "odd#1.tif").write_bytes(frames_of("TIFF"))
    return tmp_path


def hows(folder: Path, row: dict[str, Any], columns: str = "") -> list[str]:
    """The parts that a row shows, "" for a whole file."""
    (folder / "questions.jsonl").write_text(json.dumps({"prompt": "What?", **row}))
    (folder / "columns.yaml").write_text(columns)
    (question,) = load_table(folder).questions
    return [image.how if isinstance(image, ImagePart) else "" for image in question.images]


@pytest.mark.parametrize(
    ("row", "want"),
    [
        ({"image": "scan.tif"}, [""]),
        ({"image": "odd#1.tif"}, [""]),
        ({"image": "scan.tif#2"}, ["2"]),
        ({"image": "scan.tif", "page": 2}, ["frame=2"]),
        ({"image": ["scan.tif#1", "scan.tif"], "frame": 2}, ["1", "frame=2"]),
        ({"image": "scan.tif", "window": [40, 400]}, ["window=40:400"]),
        ({"image": "scan.tif#axis=0", "slice": 3, "window": "lung"}, ["axis=0,window=lung,slice=3"]),
        ({"image": "scan.tif", "frame": "grid=2x2"}, ["grid=2x2"]),
        ({"image": "scan.tif", "frames": 3}, ["frame=1/3", "frame=2/3", "frame=3/3"]),
        ({"video": "scan.tif", "frames": 2}, ["frame=1/2", "frame=2/2"]),
        ({"video": "scan.tif"}, [f"frame={k}/8" for k in range(1, 9)]),
    ],
)
def test_columns_and_names(folder: Path, row: dict[str, Any], want: list[str]) -> None:
    assert hows(folder, row) == want


def test_a_window_for_the_whole_folder(folder: Path) -> None:
    columns = "defaults: {window: [40, 400]}"
    assert hows(folder, {"image": "scan.tif"}, columns) == ["window=40:400"]
    assert hows(folder, {"image": "scan.tif", "window": "bone"}, columns) == ["window=bone"]


def test_fps_asks_how_long_the_video_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures.video, "seconds", lambda path: 2.6)
    assert hows(folder, {"video": "scan.tif", "fps": 1}) == ["frame=1/3", "frame=2/3", "frame=3/3"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"image": "scan.tif#nose"}, "'nose' after '#' says no part of it"),
        ({"image": "scan.tif", "window": "40:-1"}, "the width"),
        ({"image": "scan.tif", "frame": 1, "frames": 2}, "give one of frame, frames and slice"),
        ({"image": "scan.tif", "frames": 65}, "1 to 64"),
        ({"video": "scan.tif", "fps": 0}, "fps must be"),
        ({"video": "scan.tif", "fps": 1}, "video scan.tif: "),
        ({"image": "none.tif#1"}, "is not a file in the folder"),
        ({"image": "../x.tif#1"}, "leaves the folder"),
    ],
)
def test_a_row_that_asks_for_nothing_possible_is_left_out(folder: Path, row: dict[str, Any], words: str) -> None:
    rows = [{"prompt": "What?", **row}, {"prompt": "And?"}]
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    labelled = load_table(folder)
    assert len(labelled.questions) == 1 and words in labelled.problems[0]
