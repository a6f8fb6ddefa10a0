"""The image benchmarks: rows of every layout they accept, tiny releases on disk, real rows where they are at hand."""

from __future__ import annotations

import csv
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

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
from mm_spine.benchmarks.benchmark import Entry, Read
from mm_spine.benchmarks.prompts import STYLES, asks_yes_no, place_images, render
from mm_spine.benchmarks.release import labelled_set
from mm_spine.processors.answers import grade, parse
from mm_spine.processors.answers.choice import LABELS
from mm_spine.processors.chat import content
from mm_spine.processors.vision import BadQuestion, open_image
from mm_spine.types import LabelledSet, Question

NAMES = [
    "mathvision",
    "mathvista",
    "medxpertqa",
    "mmmu",
    "omnimedvqa",
    "path_vqa",
    "pmc_vqa",
    "scienceqa",
    "slake",
    "vqa_rad",
    "vqav2",
]
BYTES: Any = {"bytes": b"picture", "path": None}

MATHVISION = {
    "id": "7",
    "question": "Which shape fits?\n<image1>\n<image2>",
    "options": ["A", "B", "D"],
    "answer": "C",
    "image": "images/7.jpg",
    "level": 2,
    "subject": "counting",
}
SLAKE = {
    "img_id": 4,
    "img_name": "xmlab4/source.jpg",
    "question": "Is the liver enlarged?",
    "answer": "No",
    "q_lang": "en",
    "location": "Abdomen",
    "modality": "CT",
    "answer_type": "CLOSED",
    "base_type": "vqa",
    "triple": ["vhead", "_", "_"],
    "qid": 31,
    "content_type": "Abnormality",
}
MEDXPERT_HUB: dict[str, Any] = {
    "id": "MM-9",
    "question": "What is shown?\nAnswer Choices: (A) A cyst (B) A stone (C) Gas (D) Fat (E) Bone",
    "options": {"A": "A cyst", "B": "A stone", "C": "Gas", "D": "Fat", "E": "Bone"},
    "label": "B",
    "images": ["MM-9-a.jpeg", "MM-9-b.jpeg"],
    "medical_task": "Diagnosis",
    "body_system": "Urinary",
    "question_type": "Understanding",
}
MEDXPERT_EVAL = {
    **MEDXPERT_HUB,
    "options": [{"letter": letter, "content": text} for letter, text in MEDXPERT_HUB["options"].items()],
    "label": ["B"],
    "images": [{"image_path": "MM-9-a.jpeg"}, {"image_path": "MM-9-b.jpeg"}],
}
VQA_RAD = {
    "qid": "12",
    "phrase_type": "test_para",
    "image_name": "synpic1.jpg",
    "question": "How many nodules are there?",
    "answer": 2,
    "answer_type": "CLOSED ",
}
PMC = {
    "Figure_path": "PMC1_F1.jpg",
    "Question": "What is the pattern?",
    "Answer": "Focal",
    "Choice A": " A:Diffuse",
    "Choice B": "B:Focal",
    "Choice C": "C:None: at all",
    "Choice D": "D:Unclear",
    "Answer_label": "B",
}
OMNI = {
    "dataset": "Eyes",
    "question_id": "Eyes_0003",
    "question_type": "Modality Recognition",
    "question": "What kind of picture is this?",
    "gt_answer": "Fundus photography",
    "image_path": "Images/Eyes/3.png",
    "option_A": "CT",
    "option_B": "Fundus photography",
    "option_C": None,
    "modality_type": "Fundus Photography",
}
MATHVISTA = {
    "pid": "5",
    "question": "How long is the rod?",
    "image": "images/5.jpg",
    "choices": None,
    "unit": "cm",
    "precision": 2.0,
    "answer": "6.36",
    "question_type": "free_form",
    "answer_type": "float",
    "metadata": {
        "category": "general-vqa",
        "task": "figure question answering",
        "context": "bar chart",
        "grade": "college",
        "skills": ["statistical reasoning", "numeric commonsense"],
    },
    "query": "Hint: Give two decimal places.\nQuestion: How long is the rod? (Unit: cm)",
}
MMMU = {
    "id": "validation_Art_Theory_3",
    "question": "Compare <image 2> with the first.",
    "options": "['older, by far', \"the artist's\", '<image 3>', 'none']",
    "answer": "C",
    "question_type": "multiple-choice",
    "image_1": {"bytes": b"one", "path": None},
    "image_2": {"bytes": b"two", "path": None},
    "image_3": {"bytes": b"three", "path": None},
    **{f"image_{k}": None for k in range(4, 8)},
    "topic_difficulty": "Easy",
}
MMMU_OPEN = {**MMMU, "id": "validation_Math_8", "question": "Find x.", "question_type": "open", "options": "[]"}
SCIENCEQA = {
    "image": BYTES,
    "question": "Which is warmer?",
    "choices": ["the left", "the right"],
    "answer": 1,
    "hint": "Look at the sun.",
    "grade": "grade7",
    "subject": "natural science",
    "topic": "physics",
    "lecture": "Warm is warm.",
    "solution": "The right.",
}
VQAV2 = {
    "question_type": "how many",
    "multiple_choice_answer": "2",
    "answers": [{"answer": "2"}] * 9 + [{"answer": "two"}],
    "image_id": 42,
    "answer_type": "number",
    "question_id": 42001,
    "question": "How many cats?",
    "image": BYTES,
}


def same(value: Any) -> Any:
    """Stands for the look-up of images: the field's value itself."""
    return value


def entry(read: Read, row: Mapping[str, Any], place: int = 0) -> Entry:
    found = read(row, same, place)
    assert found is not None
    return found


def lost_gold(found: Entry) -> str:
    """Why `found` is asked and not graded."""
    labelled = labelled_set("one", [found], "reason")
    assert len(labelled.questions) == 1 and not labelled.key
    return labelled.problems[0]


def right(found: Entry, response: str) -> bool:
    return grade(parse(response, found.spec), found.golds, found.spec).correct


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), "red").save(path)


def askable(labelled: LabelledSet) -> list[bool]:
    """For each question, whether its images open."""
    found = []
    for question in labelled.questions:
        try:
            found.append(bool([open_image(image, question.id) for image in question.images]))
        except BadQuestion:
            found.append(False)
    return found


# MathVision


def test_mathvision_keeps_the_markers_of_its_one_picture() -> None:
    found = entry(mathvision.read, MATHVISION)
    assert (found.id, found.body, found.images) == ("7", MATHVISION["question"], ("images/7.jpg",))
    assert found.spec.choices == ("A", "B", "D") and found.tags == {"level": "2", "subject": "counting"}


def test_mathvision_prefers_the_decoded_picture_and_marks_it_first() -> None:
    found = entry(mathvision.read, {**MATHVISION, "question": "Which?", "decoded_image": BYTES})
    assert (found.body, found.images) == ("<image1>\nWhich?", (BYTES,))


# SLAKE


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


# MedXpertQA


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


# VQA-RAD and PathVQA


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


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("Is this a CT or an MRI?", False),
        ("Is there any fluid or air?", True),
        ("Is the heart enlarged or not?", True),
        ("Are/Is there kidneys in the picture?", True),
        ("In this image, does the lung look normal?", True),
        ("which organ is abnormal, heart or lung?", False),
        ("island of cells?", False),
        ("Where is/are the abnormality located?", False),
        ("肺部是正常的还是异常的？", False),
        ("请问这是CT吗，还是MRI？", False),
        ("这张图片是否包含肝脏？", True),
        ("肺健康吗", True),
        ("图中最大的器官是什么?", False),
    ],
)
def test_yes_no_questions_are_told_by_their_words(question: str, expected: bool) -> None:
    assert asks_yes_no(question) is expected


# PMC-VQA, OmniMedVQA


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


# MathVista


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


# MMMU


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


# ScienceQA, VQAv2


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


# All of them


ROWS: Mapping[str, tuple[Read, Mapping[str, Any]]] = {
    "mathvision": (mathvision.read, MATHVISION),
    "mathvista": (mathvista.read, MATHVISTA),
    "medxpertqa": (medxpertqa.read, MEDXPERT_HUB),
    "mmmu": (mmmu.read, MMMU),
    "omnimedvqa": (omnimedvqa.read, OMNI),
    "path_vqa": (path_vqa.read, {"image": BYTES, "question": "what is seen?", "answer": "a cyst"}),
    "pmc_vqa": (pmc_vqa.read, PMC),
    "scienceqa": (scienceqa.read, SCIENCEQA),
    "slake": (slake.reader("en"), SLAKE),
    "vqa_rad": (vqa_rad.read, VQA_RAD),
    "vqav2": (vqav2.read, VQAV2),
}


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


PROMPTS = {
    ("slake", "reason"): "<image1>\nIs the liver enlarged?\nThink step by step, then give yes or no in \\boxed{}.",
    ("slake", "short"): "<image1>\nIs the liver enlarged?\nAnswer with yes or no alone.",
    ("omnimedvqa", "short"): "<image1>\nWhat kind of picture is this?\n(A) CT\n(B) Fundus photography\n"
    "Answer with the letter of the right option alone.",
    ("mathvision", "reason"): "Which shape fits?\n<image1>\n<image2>\n(A) A\n(B) B\n(C) D\n"
    "Think step by step, then give the letter of the right option in \\boxed{}.",
    ("vqav2", "short"): "<image1>\nHow many cats?\nAnswer with a single word or phrase.",
    ("mathvista", "reason"): "<image1>\nHint: Give two decimal places.\nQuestion: How long is the rod? (Unit: cm)\n"
    "Think step by step, then give the final answer in \\boxed{}.",
}


@pytest.mark.parametrize(("name", "style"), PROMPTS)
def test_the_rendered_prompt(name: str, style: str) -> None:
    read, row = ROWS[name]
    assert render(entry(read, row), style) == PROMPTS[name, style]


def test_images_that_nothing_names_come_first() -> None:
    assert place_images("See <image2>.", 4, "<image4>") == "<image1>\n<image3>\nSee <image2>."
    assert place_images("No picture.", 0) == "No picture."


# Real rows


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


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        (
            "mmmu",
            [1, "\nCompare ", 2, " with the first.\n(A) older, by far\n(B) the artist's\n(C) ", 3, "\n(D) none\n"],
        ),
        ("mathvision", ["Which shape fits?\n", 1, "\nimage 2\n(A) A\n(B) B\n(C) D\n"]),
        ("medxpertqa", [1, "\n", 2, "\nWhat is shown?\nAnswer Choices: (A) A cyst"]),
    ],
)
def test_pictures_stand_where_the_question_names_them(name: str, parts: list[int | str]) -> None:
    read, row = ROWS[name]
    found = entry(read, row)
    shown = [part.get("image", part.get("text")) for part in content(render(found, "short"), len(found.images))]
    assert shown[:-1] == parts[:-1] and str(shown[-1]).startswith(str(parts[-1]))
