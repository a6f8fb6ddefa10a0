"""What is read of a run, complete, damaged or with links."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image
from saved_runs import text_of, undrawn

from mm_spine.files import read_json_lines, write_json_lines
from mm_spine.reporting import report, thumbnails

ABSENT = {
    "summary.json": "the run is unfinished",
    "config.yaml": "config.yaml is not in the folder",
    "environment.json": "environment.json is not in the folder",
    "steps.jsonl": "no step was made",
    "timings.jsonl": "timings.jsonl is not in the folder",
    "evaluation/steps.jsonl": "votes and rewards could not be graded",
    "evaluation/before.jsonl": "The run has no two evaluations to compare",
    "evaluation/after.jsonl": "there was no evaluation after adapting",
    "rollouts": "no token entropies",
    "adapted": "tokens are shown by number",
    "images": "no image is shown",
}


@pytest.mark.parametrize("name", ABSENT)
def test_a_file_that_is_absent_is_named(copy: Path, name: str) -> None:
    shutil.rmtree(copy / name) if (copy / name).is_dir() else (copy / name).unlink()
    text = text_of(copy)
    assert "Not on this page" in text and ABSENT[name] in text


@pytest.mark.parametrize("content", [b"[1, 2", b"[]", b"null", b'{"step": "x", "id": 3}', b"\xff\xfe", b""])
def test_damaged_files_cost_their_part_alone(copy: Path, content: bytes) -> None:
    for path in copy.rglob("*"):
        if path.is_file() and path.name != "config.yaml":
            path.write_bytes(content)
    assert "Not on this page" in text_of(copy)


@pytest.mark.parametrize("column", ["verdicts", "answers", "classes", "greedy", "vote"])
def test_items_of_another_kind_cost_their_part_alone(copy: Path, column: str) -> None:
    path = copy / "evaluation" / "after.jsonl"
    write_json_lines(path, [{**row, column: 7} for row in read_json_lines(path)])
    assert "spine on digits" in text_of(copy)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder; give the output folder"):
        report.write_report(tmp_path / "nothing")
    with pytest.raises(ValueError, match="holds no run"):
        report.write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_no_link_is_followed_out_of_the_folder(copy: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    Image.new("RGB", (9, 9), "red").save(secret)
    data = tmp_path / "steps.jsonl"
    data.write_text('{"step": 0, "loss": 4321.5}\n')
    for path, target in ((copy / "images" / f"{thumbnails.file_stem('a')}.png", secret), (copy / "steps.jsonl", data)):
        path.unlink()
        path.symlink_to(target)
    outside = tmp_path / "rollouts"
    (copy / "rollouts").rename(outside)
    (copy / "rollouts").symlink_to(outside)
    html = undrawn(copy)
    assert "4,322" not in html and "4322" not in html
    assert "steps.jsonl points out of the folder" in html
    assert "Responses from training" not in html
    assert list(thumbnails.read_thumbnails(copy, "a")) == []


def test_deep_nesting_costs_its_file_alone(copy: Path) -> None:
    (copy / "environment.json").write_text("[" * 100_000)
    assert "environment.json could not be read" in text_of(copy)
