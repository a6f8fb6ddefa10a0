"""A user's folder: what it may hold, what a bad line costs, and that no path leaves it."""

from __future__ import annotations

import json
import logging
import os
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mm_spine.benchmarks import BENCHMARKS, resolve
from mm_spine.benchmarks.folder import load_table
from mm_spine.processors.vision import open_image
from mm_spine.types import AnswerSpec, Question


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


def test_a_number_among_the_choices_is_its_text(folder: Path) -> None:
    labelled = load_table(write(folder, {"prompt": "2 + 2?", "choices": [3, 4, 5.5], "answer": 4}))
    assert (labelled.questions[0].spec.choices, labelled.key, labelled.problems) == (
        ("3", "4", "5.5"),
        {"questions-1": ("4",)},
        (),
    )


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
    labelled = load_table(folder)
    assert labelled.problems == ()
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
        ({"prompt": "x", "kind": "intger"}, "did you mean 'integer'"),
        ({"prompt": "x", "kind": None}, "kind must be a text"),
        ({"prompt": "x", "kind": "choice", "choices": [*"abcdefghijklmnopqrstuvwxyz0"]}, "27 choices; at most 26"),
        ({"prompt": "x", "choices": ["a", True]}, "choices must be"),
        ({"prompt": "x", "id": ["q"]}, "id must be"),
        ({"prompt": "x", "id": "good"}, "'good' was used before"),
        ({"prompt": "x", "image": "absent.png"}, "not a file"),
        ({"prompt": "x", "image": "images"}, "not a file"),
        ({"prompt": "x", "image": 5}, "image must be"),
        ({"prompt": "x", "image": "\ud800.png"}, "no file can have that name (surrogates not allowed)"),
        ({"prompt": "x", "precision": 10**400}, "precision must be a whole number"),
        ({"prompt": "x", "precision": 1e999}, "precision must be a whole number"),
        ({"prompt": "x", "choices": ["a", ""]}, "none of them empty"),
        ({"prompt": "x", "image": "nul\x00.png"}, "null"),
        ({"prompt": "x", "image": "n" * 5000}, "too long"),
        ("[" * 100_000, "skipped"),
        ('{"prompt": "x", "id": ' + "9" * 5000 + "}", "not JSON"),
    ],
)
def test_a_bad_line_costs_that_line_and_is_named(folder: Path, bad: dict[str, Any] | str, reason: str) -> None:
    labelled = load_table(write(folder, GOOD, bad, {"prompt": "Still here?"}))
    assert [question.id for question in labelled.questions] == ["good", "questions-3"]
    assert len(labelled.problems) == 1
    assert labelled.problems[0].startswith("questions.jsonl, line 2 skipped: ") and reason in labelled.problems[0]


@pytest.mark.parametrize("image", ["../secret.png", "images/../../secret.png", "images/../a.png", "{root}/secret.png"])
def test_no_path_leaves_the_folder(folder: Path, image: str) -> None:
    row = {"prompt": "x", "images": ["a.png", image.format(root=folder.parent)]}
    labelled = load_table(write(folder, GOOD, row))
    assert [question.id for question in labelled.questions] == ["good"]
    assert "line 2" in labelled.problems[0] and "leaves the folder" in labelled.problems[0]


def test_no_link_leaves_the_folder(folder: Path) -> None:
    os.symlink(folder.parent / "secret.png", folder / "link.png")
    os.symlink(folder.parent, folder / "up")
    os.symlink("a.png", folder / "inside.png")
    rows = [{"id": name, "prompt": "x", "image": name} for name in ("link.png", "up/secret.png", "inside.png")]
    labelled = load_table(write(folder, *rows))
    assert [question.id for question in labelled.questions] == ["inside.png"]
    assert len(labelled.problems) == 2 and all("link out of the folder" in problem for problem in labelled.problems)


def test_a_line_that_is_not_utf8_costs_itself(folder: Path) -> None:
    (folder / "questions.jsonl").write_bytes(
        b'\xef\xbb\xbf{"prompt": "one"}\r\n{"prompt": "\xff"}\n{"prompt": "\xc3\xa9"}'
    )
    labelled = load_table(folder)
    assert [question.prompt for question in labelled.questions] == ["one", "é"]
    assert len(labelled.problems) == 1 and "line 2 skipped: not UTF-8" in labelled.problems[0]


@pytest.mark.parametrize("answer", ["seven", [7, "x", None], True, {"a": 1}])
def test_labels_never_decide_which_questions_are_asked(folder: Path, answer: object) -> None:
    labelled = load_table(write(folder, {"id": "q", "prompt": "x", "kind": "integer", "answer": answer}))
    assert [question.id for question in labelled.questions] == ["q"]
    assert dict(labelled.key) == {}
    assert "line 1 kept without its answer" in labelled.problems[0]


def test_nothing_usable_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="no questions.jsonl"):
        load_table(folder)
    with pytest.raises(ValueError, match="no usable question.*line 1 skipped"):
        load_table(write(folder, "{"))
    with pytest.raises(ValueError, match="file is empty"):
        load_table(write(folder, ""))


def test_a_folder_resolves_and_its_bad_lines_are_logged(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(write(folder, GOOD, "{"), {"prompt": "Held out?"}, file="held_out.jsonl")
    benchmark = resolve(str(folder))
    assert (benchmark.name, benchmark.adapt_split, benchmark.held_out_split) == ("ward", "adapt", "held_out")
    assert benchmark.splits == ("adapt", "held_out") and benchmark.default_model is None
    with caplog.at_level(logging.WARNING):
        assert [question.id for question in benchmark.load("adapt").questions] == ["good"]
    assert "line 2 skipped" in caplog.text
    assert [question.prompt for question in benchmark.load("held_out", None, "verbatim").questions] == ["Held out?"]
    with pytest.raises(ValueError, match="no split 'test'; it has adapt, held_out"):
        benchmark.load("test")


def test_without_held_out_there_is_one_split(folder: Path) -> None:
    benchmark = resolve(str(write(folder, GOOD)))
    assert benchmark.held_out_split is None and benchmark.splits == ("adapt",)


def test_resolve_names_the_nearest_and_the_way_to_a_folder(folder: Path) -> None:
    with pytest.raises(ValueError, match="'digit' is neither.*did you mean 'digits'.*questions.jsonl"):
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


# Other tables


def text_table(folder: Path, name: str, text: str) -> Path:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")
    return folder


CSV = "id;Frage;Datei;Befund;A;B;C;Ort\nq1;Was?;a.png;Fraktur;ja;nein;;Nord\nq2;;images/b.png;;links;rechts;beide;\n"
YAML = """
prompt: Frage
image: Datei
answer: Befund
choices: [A, B, C]
tags: [Ort]
defaults: {prompt: "What is shown?", kind: choice}
"""


def test_a_spreadsheet_with_named_columns(folder: Path) -> None:
    text_table(text_table(folder, "questions.csv", CSV.replace("Fraktur", "ja")), "columns.yaml", YAML)
    labelled = load_table(folder)
    assert labelled.problems == ()
    first, second = labelled.questions
    assert (first.id, first.prompt, first.images) == ("q1", "Was?\n(A) ja\n(B) nein", (folder / "a.png",))
    assert first.spec == AnswerSpec("choice", ("ja", "nein"))
    assert second.prompt == "What is shown?\n(A) links\n(B) rechts\n(C) beide"
    assert dict(labelled.key) == {"q1": ("ja",)}
    assert labelled.tags == {"q1": {"Ort": "Nord"}, "q2": {}}
    assert resolve(str(folder)).breakdowns == ("Ort",) and resolve(str(folder)).kind == "choice"


def test_parquet_with_images_as_bytes(folder: Path) -> None:
    data = (folder / "a.png").read_bytes()
    rows = [
        {"prompt": "One?", "image": {"bytes": data, "path": "x.png"}, "answer": ["3"], "kind": "integer"},
        {"prompt": "None?", "image": None, "answer": None, "kind": None},
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "questions.parquet")
    labelled = load_table(folder)
    first, second = labelled.questions
    assert labelled.problems == () and open_image(first.images[0], first.id).size == (4, 4)
    assert (second.id, second.images, second.spec.kind) == ("questions-2", (), "text")
    assert dict(labelled.key) == {"questions-1": ("3",)}


@pytest.mark.parametrize("suffix", ["json", "tsv"])
def test_other_tables_hold_the_same(folder: Path, suffix: str) -> None:
    text = json.dumps([GOOD]) if suffix == "json" else "\t".join(GOOD) + "\n" + "\t".join(GOOD.values()) + "\n"
    labelled = load_table(text_table(folder, f"questions.{suffix}", text))
    assert labelled.problems == () and labelled.questions == (
        Question("good", (folder / "a.png",), "What is shown?", AnswerSpec("text", question="What is shown?")),
    )


@pytest.mark.parametrize("cell", ["left|right", " left | right ", '"[""left"", ""right""]"'])
def test_options_in_one_cell(folder: Path, cell: str) -> None:
    labelled = load_table(text_table(folder, "questions.csv", f"prompt,choices\nWhich?,{cell}\n"))
    assert labelled.questions[0].spec == AnswerSpec("choice", ("left", "right"))


@pytest.mark.parametrize(
    ("prompt", "asked"),
    [
        ("left or right?", "left or right?"),
        ("(A) left\n(B) right", "(A) left\n(B) right"),
        ("lefty or right?", "lefty or right?\n(A) left\n(B) right"),
    ],
)
def test_options_are_listed_where_the_prompt_does_not_show_them(folder: Path, prompt: str, asked: str) -> None:
    labelled = load_table(write(folder, {"prompt": prompt, "choices": ["left", "right"]}))
    assert labelled.questions[0].prompt == asked


def test_an_empty_option_before_the_last_costs_the_line_for_it_would_shift_the_letters(folder: Path) -> None:
    table = "prompt,a,b,c\nOne?,x,,z\nTwo?,x,y,\n"
    text_table(text_table(folder, "questions.csv", table), "columns.yaml", "choices: [a, b, c]")
    labelled = load_table(folder)
    assert [question.spec.choices for question in labelled.questions] == [("x", "y")]
    assert "line 2 skipped: choices must be" in labelled.problems[0]


def test_further_fields_of_a_spec(folder: Path) -> None:
    rows = (
        "prompt,precision,unit,value_type,ordered\nOne?,2,cm,float,no\nTwo?,2.0,,list,\nThree?,x,,,\nFour?,,,flaot,\n"
    )
    text_table(text_table(folder, "questions.csv", rows), "columns.yaml", "defaults: {kind: typed}")
    labelled = load_table(folder)
    assert [question.spec for question in labelled.questions] == [
        AnswerSpec("typed", (), 2, "cm", "float", False, "One?"),
        AnswerSpec("typed", (), 2, None, "list", True, "Two?"),
    ]
    assert "line 4 skipped: precision must be a whole number" in labelled.problems[0]
    assert "line 5 skipped: unknown value_type 'flaot'; did you mean 'float'" in labelled.problems[1]


def test_a_list_of_four_numbers_is_one_box(folder: Path) -> None:
    where = {"prompt": "Where?", "kind": "box"}
    rows = [
        {**where, "answer": [10, 20, 30, 40], "iou": 0.7},
        {**where, "answer": [[10, 20, 30, 40], [1, 2, 3, 4]]},
        {**where, "answer": "[10, 20, 30, 40]", "iou": "0.7"},
        {**where, "answer": [10, 20, 30]},
        {**where, "iou": 2},
    ]
    found = load_table(write(folder, *rows))
    boxes = [("[10, 20, 30, 40]",), ("[10, 20, 30, 40]", "[1, 2, 3, 4]"), ("[10, 20, 30, 40]",)]
    assert list(found.key.values()) == boxes
    assert [question.spec.iou for question in found.questions] == [0.7, None, 0.7, None]
    assert "line 4 kept without its answer" in found.problems[0] and "is not of kind 'box'" in found.problems[0]
    assert "line 5 skipped: iou must be a number above 0 and at most 1, found 2" in found.problems[1]


def test_an_image_folder_with_a_folder_for_each_split(folder: Path) -> None:
    for split in ("train", "test"):
        text_table(folder, f"{split}/metadata.csv", f"file_name,text\n{split}.png,Is it?\n../a.png,Out?\n")
        (folder / split / f"{split}.png").write_bytes((folder / "a.png").read_bytes())
    text_table(folder, "columns.yaml", "prompt: text\ndefaults: {kind: yes_no}\n")
    benchmark = resolve(str(folder))
    assert (benchmark.splits, benchmark.adapt_split, benchmark.held_out_split) == (("train", "test"), "train", "test")
    labelled = benchmark.load("test")
    assert [question.images for question in labelled.questions] == [(folder / "test" / "test.png",)]
    assert labelled.questions[0].spec.kind == "yes_no"
    assert "test/metadata.csv, line 3 skipped" in labelled.problems[0] and "leaves the folder" in labelled.problems[0]


def test_an_image_folder_without_splits(folder: Path) -> None:
    rows = ({"file_name": "a.png", "prompt": "One?"}, {"file_names": ["a.png", "images/b.png"], "prompt": "Two?"})
    labelled = load_table(write(folder, *rows, file="metadata.jsonl"))
    assert [len(question.images) for question in labelled.questions] == [1, 2]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("promt: Frage", "unknown key 'promt'; did you mean 'prompt'"),
        ("prompt: Frge", "prompt: questions.csv has no column 'Frge'; did you mean 'Frage'"),
        ("prompt: [Frage, A]", "'prompt' is one column"),
        ("prompt: Frage\nquestion: Frage", "mean the same; keep one"),
        ("image: no", "quote yes, no and numbers"),
        ("defaults: {knd: text}", "defaults: unknown key 'knd'; did you mean 'kind'"),
        ("defaults: {answer: x}", "defaults: unknown key 'answer'"),
        ("defaults: {choices: [yes, no]}", "quote yes and no"),
        ("defaults: text", "'defaults' holds lines"),
        ("- prompt", "expected lines such as"),
        ("a: [", "not YAML"),
        ("prompt: 2024-13-45", "not YAML"),
        ("[" * 5000, "not YAML"),
        ("defaults: {precision: " + "9" * 5000 + "}", "not YAML"),
    ],
)
def test_a_wrong_columns_file_is_named_with_what_to_do(folder: Path, text: str, reason: str) -> None:
    text_table(text_table(folder, "questions.csv", CSV), "columns.yaml", text)
    with pytest.raises(ValueError, match=re.escape(reason)) as error:
        load_table(folder)
    assert "columns.yaml" in str(error.value)


def test_an_answer_column_that_is_not_there_costs_the_answers_alone(folder: Path) -> None:
    yaml = YAML.replace("Befund", "Befnd")
    labelled = load_table(text_table(text_table(folder, "questions.csv", CSV), "columns.yaml", yaml))
    assert len(labelled.questions) == 2 and dict(labelled.key) == {}
    assert "answer: questions.csv has no column 'Befnd'; did you mean 'Befund'" in labelled.problems[0]


def test_a_field_can_be_switched_off(folder: Path) -> None:
    labelled = load_table(write(text_table(folder, "columns.yaml", "kind:\n"), GOOD | {"kind": "CT"}))
    assert labelled.questions[0].spec.kind == "text"


def test_two_tables_of_one_name_are_refused(folder: Path) -> None:
    text_table(write(folder, GOOD), "questions.csv", CSV)
    with pytest.raises(ValueError, match="holds questions.jsonl and questions.csv; keep one of them"):
        load_table(folder)


def test_the_folder_is_its_own_source(folder: Path) -> None:
    with pytest.raises(ValueError, match="is the source of its own questions; leave source out"):
        resolve(str(write(folder, GOOD))).load("adapt", "owner/name")
