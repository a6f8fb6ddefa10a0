"""One row of each image benchmark, as released, and what reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from mm_spine.benchmarks import (
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
from mm_spine.benchmarks.release import labelled_set
from mm_spine.processors.answers import grade, parse
from mm_spine.processors.vision import BadQuestion, open_image
from mm_spine.types import LabelledSet

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
