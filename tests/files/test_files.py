"""JSON and JSON lines: whole, durable, and errors that name the line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mm_spine import files
from mm_spine.types import StepReport


def test_json_lines_append_and_read(tmp_path: Path) -> None:
    log = files.JsonLines(tmp_path / "logs" / "steps.jsonl")
    log.append(StepReport(step=0, loss=0.5))
    log.append({"step": 1, "text": "a\nb é"})
    lines = log.path.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2 and json.loads(lines[0])["loss"] == 0.5
    assert files.read_json_lines(log.path)[1] == {"step": 1, "text": "a\nb é"}


def test_json_lines_are_on_disk_before_append_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[bytes] = []
    log = files.JsonLines(tmp_path / "steps.jsonl")
    monkeypatch.setattr(files.os, "fsync", lambda _: synced.append(log.path.read_bytes()))
    log.append({"step": 0})
    assert synced == [b'{"step": 0}\n']


def test_resume_drops_later_steps_and_the_torn_line(tmp_path: Path) -> None:
    log = files.JsonLines(tmp_path / "steps.jsonl")
    for step in range(5):
        log.append({"step": step})
    kept = b"".join(log.path.read_bytes().splitlines(keepends=True)[:3])
    with log.path.open("ab") as file:
        file.write(b'{"step": 5, "lo')
    assert [row["step"] for row in files.read_json_lines(log.path)] == [0, 1, 2, 3, 4]
    log.truncate_after(2)
    assert log.path.read_bytes() == kept
    log.append({"step": 3})
    assert [row["step"] for row in files.read_json_lines(log.path)] == [0, 1, 2, 3]
    files.JsonLines(tmp_path / "absent.jsonl").truncate_after(1)
    assert not (tmp_path / "absent.jsonl").exists()


def test_a_whole_last_line_without_newline_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"step": 0}\n{"step": 1}')
    log = files.JsonLines(path)
    log.truncate_after(1)
    log.append({"step": 2})
    assert [row["step"] for row in files.read_json_lines(path)] == [0, 1, 2]


@pytest.mark.parametrize("bad", [b'{"step": 0}\n{"st\n{"step": 2}\n', b'{"step": 0}\n[1]\n{"step": 2}\n'])
def test_a_damaged_inner_line_is_an_error_with_its_number(tmp_path: Path, bad: bytes) -> None:
    path = tmp_path / "steps.jsonl"
    path.write_bytes(bad)
    with pytest.raises(ValueError, match="steps.jsonl, line 2"):
        files.read_json_lines(path)
    with pytest.raises(ValueError, match="line 2"):
        files.JsonLines(path).truncate_after(0)
    assert path.read_bytes() == bad


def test_json_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    files.write_json(path, {"before": None, "seed": 0})
    with pytest.raises(ValueError, match="summary.json"):
        files.write_json(path, {"seed": float("nan")})
    assert files.read_json(path) == {"before": None, "seed": 0}
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]
    path.write_text("{")
    with pytest.raises(ValueError, match="summary.json: not valid JSON"):
        files.read_json(path)


def test_a_crash_while_writing_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl"
    files.write_json_lines(path, [{"a": 1}])
    with pytest.raises(ValueError, match="rows.jsonl"):
        files.write_json_lines(path, [{"a": 2}, {"a": object()}])
    assert files.read_json_lines(path) == [{"a": 1}]
    assert [p.name for p in tmp_path.iterdir()] == ["rows.jsonl"]
