"""A user's folder: what it may hold, what a bad line costs, and that no path leaves it."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mm_spine.benchmarks import BENCHMARKS, resolve
from mm_spine.benchmarks.own import load_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "ward"
    (folder / "images").mkdir(parents=True)
    for name in ("a.png", "images/b.png"):
        Image.new("RGB", (4, 4)).save(folder / name)
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    return folder


def write(folder: Path, *rows: dict[str, Any] | str, file: str = "questions.jsonl") -> Path:
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    (folder / file).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


GOOD = {"id": "good", "prompt": "What is shown?", "image": "a.png"}


def test_fields_become_questions_and_golds_go_to_the_key_alone(folder: Path) -> None:
    write(
        folder,
        {"id": 7, "image": "a.png", "question": "How many?", "kind": "integer", "answer": 3},
        {
            "images": ["a.png", "images/b.png"],
            "prompt": "Which?",
            "choices": ["left", "right"],
            "answer": ["A", "left"],
        },
        "",
        {"prompt": "No image here."},
    )
    labelled, problems = load_folder(folder)
    assert problems == []
    first, second, third = labelled.questions
    assert (first.id, first.images, first.prompt) == ("7", (folder / "a.png",), "How many?")
    assert (first.spec.kind, first.benchmark) == ("integer", "own")
    assert (second.id, second.spec.kind, second.spec.choices) == ("questions-2", "choice", ("left", "right"))
    assert second.images == (folder / "a.png", folder / "images" / "b.png")
    assert (third.id, third.images, third.spec.kind) == ("questions-4", (), "text")
    assert dict(labelled.key) == {"7": ("3",), "questions-2": ("A", "left")}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("{not json", "not JSON"),
        ("[1, 2]", "expected a JSON object, found list"),
        ({"image": "a.png"}, "no prompt"),
        ({"prompt": "  \n"}, "empty question"),
        ({"prompt": 3}, "empty question 3"),
        ({"prompt": "\ud800?"}, "half a character"),
        ({"prompt": "x", "kind": "intger"}, "nearest is 'integer'"),
        ({"prompt": "x", "kind": None}, "kind must be a text"),
        ({"prompt": "x", "kind": "choice", "choices": [*"abcdefghijk"]}, "11 choices; at most 10"),
        ({"prompt": "x", "choices": ["a", 2]}, "choices must be"),
        ({"prompt": "x", "id": ["q"]}, "id must be"),
        ({"prompt": "x", "id": "good"}, "'good' was used before"),
        ({"prompt": "x", "image": "absent.png"}, "not a file"),
        ({"prompt": "x", "image": "images"}, "not a file"),
        ({"prompt": "x", "image": 5}, "image must be"),
        ({"prompt": "x", "image": "nul\x00.png"}, "null"),
        ({"prompt": "x", "image": "n" * 5000}, "too long"),
        ("[" * 100_000, "skipped"),
        ('{"prompt": "x", "id": ' + "9" * 5000 + "}", "not JSON"),
    ],
)
def test_a_bad_line_costs_that_line_and_is_named(folder: Path, bad: dict[str, Any] | str, reason: str) -> None:
    labelled, problems = load_folder(write(folder, GOOD, bad, {"prompt": "Still here?"}))
    assert [question.id for question in labelled.questions] == ["good", "questions-3"]
    assert len(problems) == 1
    assert problems[0].startswith("questions.jsonl, line 2 skipped: ") and reason in problems[0]


@pytest.mark.parametrize("image", ["../secret.png", "images/../../secret.png", "images/../a.png", "{root}/secret.png"])
def test_no_path_leaves_the_folder(folder: Path, image: str) -> None:
    row = {"prompt": "x", "images": ["a.png", image.format(root=folder.parent)]}
    labelled, problems = load_folder(write(folder, GOOD, row))
    assert [question.id for question in labelled.questions] == ["good"]
    assert "line 2" in problems[0] and "leaves the folder" in problems[0]


def test_no_link_leaves_the_folder(folder: Path) -> None:
    os.symlink(folder.parent / "secret.png", folder / "link.png")
    os.symlink(folder.parent, folder / "up")
    os.symlink("a.png", folder / "inside.png")
    rows = [{"id": name, "prompt": "x", "image": name} for name in ("link.png", "up/secret.png", "inside.png")]
    labelled, problems = load_folder(write(folder, *rows))
    assert [question.id for question in labelled.questions] == ["inside.png"]
    assert len(problems) == 2 and all("link out of the folder" in problem for problem in problems)


def test_a_line_that_is_not_utf8_costs_itself(folder: Path) -> None:
    (folder / "questions.jsonl").write_bytes(
        b'\xef\xbb\xbf{"prompt": "one"}\r\n{"prompt": "\xff"}\n{"prompt": "\xc3\xa9"}'
    )
    labelled, problems = load_folder(folder)
    assert [question.prompt for question in labelled.questions] == ["one", "é"]
    assert len(problems) == 1 and "line 2 skipped: not UTF-8" in problems[0]


@pytest.mark.parametrize("answer", ["seven", [7, "x", None], True, {"a": 1}])
def test_labels_never_decide_which_questions_are_asked(folder: Path, answer: object) -> None:
    labelled, problems = load_folder(write(folder, {"id": "q", "prompt": "x", "kind": "integer", "answer": answer}))
    assert [question.id for question in labelled.questions] == ["q"]
    assert dict(labelled.key) == {}
    assert "line 1 kept without its answer" in problems[0]


def test_nothing_usable_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="no questions.jsonl"):
        load_folder(folder)
    with pytest.raises(ValueError, match="no usable question.*line 1 skipped"):
        load_folder(write(folder, "{"))
    with pytest.raises(ValueError, match="file is empty"):
        load_folder(write(folder, ""))


def test_a_folder_resolves_and_its_bad_lines_are_logged(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(write(folder, GOOD, "{"), {"prompt": "Held out?"}, file="held_out.jsonl")
    benchmark = resolve(str(folder))
    assert (benchmark.name, benchmark.adapt_split, benchmark.held_out_split) == ("ward", "adapt", "held_out")
    assert benchmark.splits == ("adapt", "held_out") and benchmark.default_model is None
    with caplog.at_level(logging.WARNING):
        assert [question.id for question in benchmark.load("adapt").questions] == ["good"]
    assert "line 2 skipped" in caplog.text
    assert [question.prompt for question in benchmark.load("held_out").questions] == ["Held out?"]
    with pytest.raises(ValueError, match="no split 'test'; it has adapt, held_out"):
        benchmark.load("test")


def test_without_held_out_there_is_one_split(folder: Path) -> None:
    benchmark = resolve(str(write(folder, GOOD)))
    assert benchmark.held_out_split is None and benchmark.splits == ("adapt",)


def test_resolve_names_the_nearest_and_the_way_to_a_folder(folder: Path) -> None:
    with pytest.raises(ValueError, match="'digit' is neither.*nearest benchmark is 'digits'.*questions.jsonl"):
        resolve("digit")
    with pytest.raises(ValueError, match="is a file, not a folder"):
        resolve(str(folder / "a.png"))
    with pytest.raises(ValueError, match="no questions.jsonl in this folder"):
        resolve(str(folder))
    with pytest.raises(ValueError, match="neither"):
        resolve("")


def test_a_name_wins_over_a_folder_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    write(tmp_path / "digits", GOOD | {"image": None})
    assert resolve("digits") is BENCHMARKS["digits"]
    assert resolve("./digits").summary.startswith("Your own questions")


def test_the_table_agrees_with_the_modules() -> None:
    from mm_spine.benchmarks import digits

    row = BENCHMARKS["digits"]
    assert row.splits == digits.SPLITS and row.default_model == digits.MODEL_DIR
    assert {row.adapt_split, row.held_out_split} <= set(row.splits)
    assert len(row.load("tune").questions) > 0
