"""What holds for every image benchmark, on one row of each and on real rows where they are at hand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from image_rows import MEDXPERT_HUB, NAMES, ROWS, askable, entry, picture, right, write_jsonl

from mm_spine.benchmarks import (
    BENCHMARKS,
)
from mm_spine.benchmarks.prompts import STYLES, render
from mm_spine.processors.answers import grade, parse
from mm_spine.processors.answers.choice import LABELS
from mm_spine.types import Question


@pytest.mark.parametrize("name", NAMES)
def test_each_says_where_it_is_from_and_what_is_reported(name: str) -> None:
    benchmark = BENCHMARKS[name]
    assert benchmark.name == name and benchmark.summary and benchmark.metric and benchmark.licence
    assert re.search(r"\((19|20)\d\d\)", benchmark.citation)
    assert benchmark.source is not None and benchmark.source.revision == "main"
    assert benchmark.adapt_split in benchmark.splits


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_split_is_an_error_that_names_the_splits(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"no split 'nowhere'; take one of {', '.join(BENCHMARKS[name].splits)}"):
        BENCHMARKS[name].load("nowhere", str(tmp_path))


@pytest.mark.parametrize("name", NAMES)
def test_the_tags_of_a_row_are_what_results_are_broken_down_by(name: str) -> None:
    read, row = ROWS[name]
    found = entry(read, row)
    assert found.spec.kind in (BENCHMARKS[name].kind, "text")
    assert set(found.tags) & set(BENCHMARKS[name].breakdowns) or not BENCHMARKS[name].breakdowns


@pytest.mark.parametrize("name", NAMES)
def test_a_gold_is_right_boxed_announced_and_bare_and_is_nowhere_in_the_prompt(name: str) -> None:
    read, row = ROWS[name]
    found = entry(read, row)
    gold = found.golds[0]
    assert all(right(found, form) for form in (f"\\boxed{{{gold}}}", f"The answer is {gold}.", gold))
    assert not right(found, "\\boxed{zebra}")


@pytest.mark.parametrize("name", NAMES)
def test_what_is_asked_does_not_depend_on_the_gold(name: str) -> None:
    read, row = ROWS[name]
    others = {"answer": {"scienceqa": 0}.get(name, "A"), "label": "A", "Answer_label": "A", "gt_answer": "CT"}
    other = entry(read, {**row, **{field: value for field, value in others.items() if field in row}, "answers": None})
    found = entry(read, row)
    assert (other.body, other.spec, other.images, other.tags) == (found.body, found.spec, found.images, found.tags)
    assert all(render(other, style) == render(found, style) for style in STYLES)


@pytest.mark.parametrize(
    ("name", "folder", "split", "count", "with_images"),
    [
        ("mathvision", "mathvision", "test", 48, 48),
        ("mathvista", "mathvista", "testmini", 40, 0),
        ("medxpertqa", "medxpertqa_mm", "test", 40, 0),
    ],
)
def test_every_real_row_is_read_and_one_without_its_picture_is_graded_not_asked(
    shared: Path, name: str, folder: str, split: str, count: int, with_images: int
) -> None:
    source = shared / "data" / "real_rows" / folder
    if not source.is_dir():
        pytest.skip(f"no rows of {folder} in ../shared/data/real_rows")
    labelled = BENCHMARKS[name].load(split, str(source))
    assert len(labelled.questions) == len(labelled.key) == count and not labelled.problems
    assert sum(askable(labelled)) == with_images
    wrong = [
        (question.id, form)
        for question in labelled.questions
        for gold in labelled.key[question.id]
        for form in (f"\\boxed{{{gold}}}", f"The answer is {gold}.", gold)
        if not grade(parse(form, question.spec), gold, question.spec).correct
    ]
    assert wrong == []
    assert not [question.id for question in labelled.questions if other_is_right(question, labelled.key[question.id])]


def other_is_right(question: Question, golds: tuple[str, ...]) -> bool:
    """Whether an answer that is not the gold's grades correct: another option, or the number with a 7 before it.

    Where options are letters themselves, one that is the text of the gold's option counts as right.
    """
    spec = question.spec
    mine = {label for label, text in zip(LABELS, spec.choices, strict=False) if golds[0] in (label, text)}
    mine |= {spec.choices[LABELS.index(label)] for label in mine}
    others = [letter for letter in LABELS[: len(spec.choices)] if letter not in mine]
    answers = others if spec.choices else [f"7{golds[0]}"]
    return any(grade(parse(f"\\boxed{{{answer}}}", spec), golds, spec).correct for answer in answers)


def test_medxpertqa_is_found_in_the_folder_of_its_configuration(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "MM" / "test.jsonl", [MEDXPERT_HUB])
    write_jsonl(tmp_path / "Text" / "test.jsonl", [{**MEDXPERT_HUB, "id": "Text-1", "images": None}])
    for letter in "ab":
        picture(tmp_path / "images" / f"MM-9-{letter}.jpeg")
    labelled = BENCHMARKS["medxpertqa"].load("test", str(tmp_path))
    assert [question.id for question in labelled.questions] == ["MM-9"] and askable(labelled) == [True]


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_another_split_are_never_taken_for_the_one_asked_for(name: str, tmp_path: Path) -> None:
    for other in ("train", "dev_set"):
        write_jsonl(tmp_path / f"{other}.jsonl", [{"id": "x"}])
    with pytest.raises(ValueError, match=r"no file of split .*it holds dev_set.jsonl, train.jsonl"):
        BENCHMARKS[name].load(BENCHMARKS[name].adapt_split, str(tmp_path))
