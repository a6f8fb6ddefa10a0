"""The image benchmarks: rows of every layout that they accept, and tiny releases on disk."""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_rows import (
    BYTES,
    MATHVISION,
    MATHVISTA,
    MEDXPERT_EVAL,
    MEDXPERT_HUB,
    MMMU,
    MMMU_OPEN,
    OMNI,
    PMC,
    SCIENCEQA,
    SLAKE,
    VQA_RAD,
    VQAV2,
    askable,
    entry,
    lost_gold,
    picture,
    right,
    same,
)

from mm_spine.benchmarks import (
    BENCHMARKS,
    mathvision,
    mathvista,
    medxpertqa,
    mmmu,
    omnimedvqa,
    path_vqa,
    pmc_vqa,
    scienceqa,
    slake,
    vqa_rad,
    vqav2,
)
from mm_spine.benchmarks.prompts import render
from mm_spine.processors.answers import grade, parse


def test_mathvision_keeps_the_markers_of_its_one_picture() -> None:
    found = entry(mathvision.read, MATHVISION)
    assert (found.id, found.body, found.images) == ("7", MATHVISION["question"], ("images/7.jpg",))
    assert found.spec.choices == ("A", "B", "D") and found.tags == {"level": "2", "subject": "counting"}


def test_mathvision_prefers_the_decoded_picture_and_marks_it_first() -> None:
    found = entry(mathvision.read, {**MATHVISION, "question": "Which?", "decoded_image": BYTES})
    assert (found.body, found.images) == ("<image1>\nWhich?", (BYTES,))


def test_slake_reads_english_rows_and_passes_over_chinese_ones() -> None:
    found = entry(slake.reader("en"), SLAKE)
    assert (found.id, found.body) == ("31", "<image1>\nIs the liver enlarged?")
    assert found.images == ("xmlab4/source.jpg",)
    assert found.tags == {"answer_type": "closed", "modality": "CT", "content_type": "Abnormality"}
    assert slake.reader("zh")(SLAKE, same, 0) is None
    assert right(found, "No, it is of normal size.") and not right(found, "Yes")


def test_slake_tells_yes_no_questions_by_their_words_never_by_the_answer() -> None:
    bigger = {**SLAKE, "question": "Which is bigger, liver or spleen?", "answer": "Liver"}
    specs = [entry(slake.reader("en"), {**row, "answer": gold}).spec for row in (SLAKE, bigger) for gold in ("No", "X")]
    assert [spec.choices for spec in specs] == [("yes", "no")] * 2 + [()] * 2
    assert right(entry(slake.reader("en"), bigger), "\\boxed{liver}")


def test_slake_asks_chinese_questions_for_chinese() -> None:
    row = {**SLAKE, "q_lang": "zh", "question": "图中有没有肝脏？", "answer": "有"}
    found = entry(slake.reader("zh"), row)
    assert found.body == "<image1>\n图中有没有肝脏？\n请用中文回答。" and found.spec.choices == ("yes", "no")
    assert right(found, "\\boxed{有}") and right(found, "yes") and not right(found, "没有")


def test_slake_loads_both_languages_from_one_file(tmp_path: Path) -> None:
    chinese = {**SLAKE, "qid": 32, "q_lang": "zh", "question": "肝大吗?", "answer": "不"}
    (tmp_path / "test.json").write_text(json.dumps([SLAKE, chinese]))
    with zipfile.ZipFile(tmp_path / "imgs.zip", "w") as archive:
        picture(tmp_path / "one.jpg")
        archive.write(tmp_path / "one.jpg", "imgs/xmlab4/source.jpg")
    english = BENCHMARKS["slake"].load("test", str(tmp_path))
    assert [question.id for question in english.questions] == ["31"] and askable(english) == [True]
    assert [q.id for q in BENCHMARKS["slake"].load("test_zh", str(tmp_path)).questions] == ["32"]


@pytest.mark.parametrize("row", [MEDXPERT_HUB, MEDXPERT_EVAL, {**MEDXPERT_HUB, "options": None}])
def test_medxpertqa_reads_each_layout_alike(row: Mapping[str, Any]) -> None:
    found = entry(medxpertqa.read, row)
    assert found.spec.choices == ("A cyst", "A stone", "Gas", "Fat", "Bone") and found.golds == ("B",)
    assert found.images == ("MM-9-a.jpeg", "MM-9-b.jpeg")
    assert found.body == f"<image1>\n<image2>\n{MEDXPERT_HUB['question']}"
    assert found.tags == {"medical_task": "Diagnosis", "body_system": "Urinary", "question_type": "Understanding"}
    assert right(found, "The answer is (B).") and not right(found, "The answer is (A).")


def test_medxpertqa_lists_its_options_once() -> None:
    assert render(entry(medxpertqa.read, MEDXPERT_EVAL), "reason").count("A cyst") == 1
    assert render(entry(medxpertqa.read, {**MEDXPERT_HUB, "question": "What?"}), "short").count("(A) A cyst") == 1


def test_vqa_rad_reads_the_original_and_leaves_out_its_training_part() -> None:
    found = entry(vqa_rad.read, VQA_RAD)
    assert (found.id, found.golds, found.images) == ("12", ("2",), ("synpic1.jpg",))
    assert found.tags == {"answer_type": "closed"} and found.spec.choices == ()
    assert right(found, "two") and vqa_rad.read({**VQA_RAD, "phrase_type": "freeform"}, same, 0) is None


@pytest.mark.parametrize(("module", "id"), [(vqa_rad, "vqa_rad/test/00003"), (path_vqa, "path_vqa/00003")])
def test_the_hub_copies_have_no_more_than_image_question_and_answer(module: Any, id: str) -> None:
    closed = entry(module.read, {"image": BYTES, "question": "is the heart enlarged?", "answer": "Yes"}, 3)
    opened = entry(module.read, {"image": BYTES, "question": "what is shown?", "answer": "a cyst"}, 3)
    assert (closed.id, closed.body, closed.images) == (id, "<image1>\nis the heart enlarged?", (BYTES,))
    assert [found.tags["answer_type"] for found in (closed, opened)] == ["closed", "open"]
    assert right(closed, "Yes, it is enlarged.") and right(opened, "\\boxed{Cyst}") and not right(opened, "a stone")


@pytest.mark.parametrize("gold", ["deviated", "cannot be determined"])
def test_a_yes_no_question_with_another_answer_is_asked_like_its_kind(gold: str) -> None:
    row = {"image": BYTES, "question": "Is the trachea midline?", "answer": gold}
    found = entry(vqa_rad.read, row)
    assert found.spec == entry(vqa_rad.read, {**row, "answer": "yes"}).spec


def test_a_gold_that_leaves_a_yes_no_question_open_is_reported_and_not_graded() -> None:
    row = {"image": BYTES, "question": "Is the trachea midline?", "answer": "cannot be determined"}
    problem = lost_gold(entry(vqa_rad.read, row))
    assert problem.startswith("vqa_rad/test/00000 kept without its answer") and "'cannot be determined'" in problem


def test_pmc_vqa_takes_the_labels_off_its_choices() -> None:
    found = entry(pmc_vqa.read, PMC, 2)
    assert found.spec.choices == ("Diffuse", "Focal", "None: at all", "Unclear")
    assert (found.id, found.golds, found.images) == ("pmc_vqa/00002", ("B",), ("PMC1_F1.jpg",))
    assert right(found, "Focal") and not right(found, "(A)")


def test_pmc_vqa_loads_both_versions_of_its_csv(tmp_path: Path) -> None:
    second = {
        "index": "77",
        **{name: PMC[name] for name in PMC if name != "Answer_label"},
        "Answer": "D",
        "split": "test",
    }
    for name, row in (("test_clean.csv", PMC), ("test_2.csv", second)):
        with (tmp_path / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            writer.writeheader()
            writer.writerow(row)
    picture(tmp_path / "figures" / "PMC1_F1.jpg")
    sets = [BENCHMARKS["pmc_vqa"].load(split, str(tmp_path)) for split in ("test_clean", "test_2")]
    assert [dict(labelled.key) for labelled in sets] == [{"pmc_vqa/00000": ("B",)}, {"77": ("D",)}]
    assert [askable(labelled) for labelled in sets] == [[True], [True]]


def test_pmc_vqa_keeps_a_question_whose_label_is_no_option() -> None:
    assert "'X'" in lost_gold(entry(pmc_vqa.read, {**PMC, "Answer_label": "X"}))


def test_omnimedvqa_turns_the_text_of_its_gold_into_the_letter() -> None:
    found = entry(omnimedvqa.read, OMNI)
    assert (found.spec.choices, found.golds) == (("CT", "Fundus photography"), ("B",))
    assert found.tags == {
        "modality_type": "Fundus Photography",
        "question_type": "Modality Recognition",
        "dataset": "Eyes",
    }
    assert right(found, "Fundus photography") and right(found, "\\boxed{B}") and not right(found, "CT")


def test_omnimedvqa_accepts_each_option_that_repeats_the_gold_and_keeps_a_question_whose_gold_none_has() -> None:
    assert entry(omnimedvqa.read, {**OMNI, "option_D": "Fundus photography"}).golds == ("B", "C")
    assert "'MR'" in lost_gold(entry(omnimedvqa.read, {**OMNI, "gt_answer": "MR"}))


def test_omnimedvqa_reads_the_unpacked_archive_one_file_a_collection(tmp_path: Path) -> None:
    folder = tmp_path / "OmniMedVQA"
    for name in ("Ears", "Eyes"):
        path = folder / "QA_information" / "Open-access" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps([{**OMNI, "question_id": name, "image_path": f"Images/{name}/3.png"}]))
    picture(folder / "Images" / "Eyes" / "3.png")
    for source in (tmp_path, folder):
        labelled = BENCHMARKS["omnimedvqa"].load("test", str(source))
        assert [question.id for question in labelled.questions] == ["Ears", "Eyes"]
        assert askable(labelled) == [False, True] and len(labelled.key) == 2


def test_mathvista_asks_its_query_and_keeps_form_and_unit() -> None:
    found = entry(mathvista.read, {**MATHVISTA, "decoded_image": BYTES})
    assert found.body == f"<image1>\n{MATHVISTA['query']}" and found.images == (BYTES,)
    spec = found.spec
    assert (spec.kind, spec.precision, spec.unit, spec.value_type) == ("typed", 2, "cm", "float")
    assert found.tags == {
        "question_type": "free_form",
        "answer_type": "float",
        "task": "figure question answering",
        "context": "bar chart",
        "category": "general-vqa",
        "grade": "college",
        "statistical reasoning": "yes",
        "numeric commonsense": "yes",
    }


def test_mathvista_lists_options_once_with_and_without_a_query() -> None:
    row = {**MATHVISTA, "choices": ["yes", "no"], "answer_type": "text", "precision": None, "answer": "no"}
    listed = entry(mathvista.read, {**row, "query": "Question: Is it?\nChoices:\n(A) yes\n(B) no"})
    alone = entry(mathvista.read, {**row, "query": ""})
    assert [render(found, "short").count("(B) no") for found in (listed, alone)] == [1, 1]
    assert alone.body == "<image1>\nHow long is the rod? (Unit: cm)"


def test_mathvista_reads_the_original_object_of_objects(tmp_path: Path) -> None:
    rows = {"5": {name: MATHVISTA[name] for name in MATHVISTA if name != "query"}}
    (tmp_path / "testmini.json").write_text(json.dumps(rows))
    picture(tmp_path / "images" / "5.jpg")
    labelled = BENCHMARKS["mathvista"].load("testmini", str(tmp_path))
    assert "with 2 decimal place(s)" in labelled.questions[0].prompt and askable(labelled) == [True]


def test_mathvista_questions_without_an_answer_have_no_gold() -> None:
    assert entry(mathvista.read, {**MATHVISTA, "answer": ""}).golds == ()


def test_mmmu_names_images_as_everywhere_and_puts_the_unnamed_ones_first() -> None:
    found = entry(mmmu.read, MMMU)
    assert found.body == "<image1>\nCompare <image2> with the first."
    assert found.spec.choices == ("older, by far", "the artist's", "<image3>", "none")
    pictures: Any = found.images
    assert [image["bytes"] for image in pictures] == [b"one", b"two", b"three"]
    assert found.tags == {
        "subject": "Art_Theory",
        "discipline": "Art and Design",
        "question_type": "multiple-choice",
        "difficulty": "Easy",
    }
    assert right(found, "The answer is C.") and not right(found, "none")


def test_mmmu_counts_images_among_those_that_are_there() -> None:
    found = entry(mmmu.read, {**MMMU, "image_1": None})
    assert (found.body, found.spec.choices[2], len(found.images)) == ("Compare <image1> with the first.", "<image2>", 2)
    with pytest.raises(ValueError, match=r"names image 2; the row has images \[1, 3\]"):
        mmmu.read({**MMMU, "image_2": None}, same, 0)


@pytest.mark.parametrize(
    ("answer", "good", "bad"),
    [
        ("8.0", "8", "9"),
        ("1,234.5", "1234.50", "1234"),
        ("['sky', 'the sky']", "Sky", "sea"),
        ("3.14159", "3.14", "3"),
        ("2.004", "2", "2.1"),
    ],
)
def test_mmmu_open_answers_count_in_every_form_that_is_held_equal(answer: str, good: str, bad: str) -> None:
    found = entry(mmmu.read, {**MMMU_OPEN, "answer": answer})
    assert found.spec.choices == () and found.spec == entry(mmmu.read, {**MMMU_OPEN, "answer": "x"}).spec
    assert right(found, f"\\boxed{{{good}}}") and not right(found, f"\\boxed{{{bad}}}")


def test_mmmu_withheld_answers_are_no_golds() -> None:
    assert entry(mmmu.read, {**MMMU, "answer": "?"}).golds == ()


@pytest.mark.parametrize("options", ["[" * 5000, "['a'" + ", 'a'" * 9000 + "]", "__import__('os')", "3"])
def test_mmmu_options_are_read_as_a_list_and_as_nothing_else(options: str) -> None:
    with pytest.raises(ValueError, match="list"):
        mmmu.read({**MMMU, "options": options}, same, 0)


@pytest.mark.parametrize(
    "name", ["data/validation-00000-of-00001.parquet", "Art_Theory/validation-00000-of-00001.parquet"]
)
def test_mmmu_loads_both_hub_layouts(tmp_path: Path, name: str) -> None:
    picture(tmp_path / "one.png")
    image = {"bytes": (tmp_path / "one.png").read_bytes(), "path": None}
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{**MMMU, **{f"image_{k}": image for k in (1, 2, 3)}}]
    fields = [pa.field(key, kind if key.startswith("image_") else pa.string()) for key in MMMU]
    (tmp_path / name).parent.mkdir()
    pq.write_table(pa.Table.from_pylist(rows, pa.schema(fields)), tmp_path / name)
    labelled = BENCHMARKS["mmmu"].load("validation", str(tmp_path))
    assert askable(labelled) == [True] and len(labelled.questions[0].images) == 3


def test_scienceqa_turns_the_place_of_the_answer_into_its_letter() -> None:
    found = entry(scienceqa.read, SCIENCEQA, 4)
    assert (found.id, found.golds, found.images) == ("scienceqa/test/00004", ("B",), (BYTES,))
    assert found.body == "<image1>\nContext: Look at the sun.\nWhich is warmer?"
    assert found.tags == {"subject": "natural science", "topic": "physics", "grade": "7-12"}
    assert right(found, "The right") and not right(found, "A")
    assert "'C'" in lost_gold(entry(scienceqa.read, {**SCIENCEQA, "answer": 2}))
    assert entry(scienceqa.read, {**SCIENCEQA, "answer": -1}).golds == ()


def test_scienceqa_original_leaves_out_other_splits_and_questions_without_a_picture(tmp_path: Path) -> None:
    row = {**SCIENCEQA, "split": "test", "image": "image.png", "grade": "grade2"}
    rows = {"1": row, "2": {**row, "image": None}, "3": {**row, "split": "train"}}
    (tmp_path / "problems.json").write_text(json.dumps(rows))
    picture(tmp_path / "images" / "test" / "1" / "image.png")
    labelled = BENCHMARKS["scienceqa"].load("test", str(tmp_path))
    assert [question.id for question in labelled.questions] == ["1"] and askable(labelled) == [True]
    assert labelled.tags["1"]["grade"] == "1-6" and "Warm is warm" not in labelled.questions[0].prompt


@pytest.mark.parametrize("answers", [VQAV2["answers"], ["2"] * 9 + ["two"], {"answer": ["2"] * 9 + ["two"]}])
def test_vqav2_keeps_the_ten_answers(answers: Any) -> None:
    found = entry(vqav2.read, {**VQAV2, "answers": answers})
    assert (found.id, found.golds, found.tags) == ("42001", ("2",) * 9 + ("two",), {"answer_type": "number"})
    verdict = grade(parse("2", found.spec), found.golds, found.spec)
    assert verdict.score == 1.0 and not right(found, "3")


def test_vqav2_withheld_answers_are_no_golds() -> None:
    assert entry(vqav2.read, {**VQAV2, "answers": None, "answer_type": None}).golds == ()
