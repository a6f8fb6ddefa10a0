"""What a user may type or own, and the one sentence that it costs."""

from __future__ import annotations

import errno
import io
import json
import logging
import sys
from pathlib import Path

import pytest
from command_line import Command, refused
from PIL import Image
from rich.console import Console

from mm_spine.benchmarks.digits import MODEL_DIR
from mm_spine.benchmarks.folder import load_table
from mm_spine.commands import printing
from mm_spine.commands.adapt import resume_command
from mm_spine.commands.terminal import VisibleFormatter
from mm_spine.runs.plan import load_config
from mm_spine.types import AnswerSpec, Question
from mm_spine.words import visible_line


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("steps=3", "did you mean 'optim.steps'?"),
        ("lr=1e-5", "did you mean 'optim.lr'?"),
        ("votes=3", "did you mean 'sampling.votes'?"),
        ("temperature=0.7", "'sampling.temperature' or 'evaluation.temperature'"),
        ("sampling.steps=3", "did you mean 'optim.steps'?"),
        ("device=cuda", "a run uses the GPU if there is one"),
        ("output=runs/a", "--output FOLDER"),
    ],
)
def test_a_key_in_the_wrong_place_is_found(
    override: str, expected: str, command: Command, nothing_loads: None, tmp_path: Path
) -> None:
    refused(command("adapt", "digits", override, "--output", tmp_path / "run"), override.split("=")[0], expected)


def test_one_tracker_may_be_written_as_a_text() -> None:
    assert load_config("digits", ["reporting.trackers=tensorboard"]).reporting.trackers == ("tensorboard",)
    assert load_config("digits", ["reporting.trackers='wandb, trackio'"]).reporting.trackers == ("wandb", "trackio")


def test_an_output_that_cannot_be_made_is_refused_before_anything_loads(command: Command, nothing_loads: None) -> None:
    refused(command("adapt", "digits", "--output", "/proc/xx"), "/proc/xx", "not a folder that can be written to")


def write(folder: Path, *rows: object) -> Path:
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (28, 28)).save(folder / "a.png")
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_table_given_for_its_folder_is_named(command: Command, tmp_path: Path) -> None:
    table = write(tmp_path / "ward", {"prompt": "What?"}) / "questions.jsonl"
    refused(command("adapt", table, "--dry-run"), "is a file; give its folder", str(table.parent))


def test_a_misspelt_column_is_named_and_costs_nothing_else(tmp_path: Path) -> None:
    labelled = load_table(write(tmp_path / "d", {"prompt": "a?", "anwser": "x", "note": "n"}, {"prompt": "b?"}))
    assert len(labelled.questions) == 2
    (problem,) = labelled.problems
    assert "column 'anwser' is not read; did you mean 'answer'?" in problem
    with pytest.raises(ValueError, match=r"column 'promt' is not read; did you mean 'prompt'\?"):
        load_table(write(tmp_path / "e", {"promt": "a?"}))


def test_half_a_character_costs_its_row(tmp_path: Path) -> None:
    rows = [{"prompt": f"{k}?"} for k in range(3)]
    odd = [{"id": "sur\ud800id"}, {"prompt": "half \udc00"}, {"choices": ["a", "\ud800"]}]
    labelled = load_table(write(tmp_path / "d", *rows, *({"prompt": "x?", **row} for row in odd)))
    assert [question.prompt for question in labelled.questions] == ["0?", "1?", "2?"]
    assert len(labelled.problems) == 3 and all("half a character" in problem for problem in labelled.problems)
    for problem in labelled.problems:
        problem.encode()


def test_marks_without_images_are_named_for_the_row(tmp_path: Path) -> None:
    rows = [{"prompt": "<image> <image>", "image": "a.png"}, {"prompt": "<image> <image>", "image": ["a.png"] * 2}]
    labelled = load_table(write(tmp_path / "d", *rows))
    assert len(labelled.questions) == 2
    assert [problem[:36] for problem in labelled.problems] == ["questions.jsonl, line 1 kept: its pr"]


def test_control_characters_reach_neither_terminal_nor_log(command: Command, tmp_path: Path) -> None:
    data = write(tmp_path / "d", {"id": "esc\x1b[2J\nid", "prompt": "a?", "image": "a.png", "kind": "odd\x1b"})
    ended = command("benchmarks", "show", data)
    assert ended.code == 2 and "\x1b" not in ended.out + ended.err
    record = logging.LogRecord("x", logging.INFO, "", 1, "read %s: %d", ("a\x1b[31m\nb", 3), None)
    assert VisibleFormatter("%(message)s").format(record) == "read a\\x1b[31m\\nb: 3"
    assert visible_line("a\tb\u202ec") == "a\\tb\\u202ec"


def test_all_images_corrupt_is_a_failure(command: Command, tmp_path: Path) -> None:
    data = write(tmp_path / "d", *({"prompt": f"{k}?", "image": "a.png"} for k in range(3)))
    (data / "a.png").write_bytes(b"no image")
    output = tmp_path / "run"
    ended = command("adapt", data, f"model.path={MODEL_DIR}", "threads=1", "--output", output)
    assert ended.code == 2 and "none of the 3 questions can be asked; the first, questions-1" in ended.err
    assert not output.exists()
    assert command("evaluate", MODEL_DIR, data, "threads=1").code == 2


def test_a_run_that_is_not_there_is_a_failure(command: Command, tmp_path: Path) -> None:
    ended = command("compare", tmp_path / "nothere")
    assert ended.code == 2 and "1 of 1 runs could not be compared" in ended.err


@pytest.mark.parametrize("name", ["grade", "vote"])
def test_rows_of_which_none_counts_are_a_failure(name: str, command: Command, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": 1}\n{"id": 2}\n')
    ended = command(name, path, "--kind", "integer", "--output", tmp_path / "out.jsonl")
    assert ended.code == 2 and "none of the 2 rows could be used" in ended.err
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 2


def test_the_command_to_go_on_can_be_pasted() -> None:
    given = ["adapt", "my data", "optim.steps=3", "--output", "runs/it's"]
    assert resume_command(given) == """mm-spine adapt 'my data' optim.steps=3 --output 'runs/it'"'"'s' --resume"""
    assert resume_command([*given, "--resume"]).count("--resume") == 1


def test_one_image_may_be_given_alone() -> None:
    image, spec = Image.new("RGB", (28, 28)), AnswerSpec("text")
    for given in (image, "a.png", Path("a.png"), b"bytes"):
        assert Question("a", given, "What?", spec).images == (given,)  # type: ignore[arg-type]
    assert Question("a", [image, image], "What?", spec).images == (image, image)  # type: ignore[arg-type]


def test_what_digits_changes_of_every_method_is_listed(command: Command) -> None:
    assert "benchmark digits sets kl=none for every method" in command("methods").out


class Full(io.TextIOWrapper):
    """A standard output on a full disk."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8")

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_under_the_output_is_one_sentence(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    # A console of its own: rich keeps what could not be written, and another test would print it.
    monkeypatch.setattr(printing, "console", Console(file=Full()))
    ended = command("methods")
    assert ended.code == 2 and "could not be written in full: No space left on device" in ended.err, ended
    assert sys.stdout is not None
