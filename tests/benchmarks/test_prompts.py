"""Prompts of entries: requests for an answer, options, and the places of images."""

from __future__ import annotations

import pytest
from image_rows import ROWS, entry

from mm_spine.benchmarks.prompts import asks_yes_no, place_images, render
from mm_spine.processors.chat import content


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
