"""Where images go in a prompt, also by the placeholders of other frameworks, and what is said where they do not fit."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
from tiny import tiny_processor, tiny_questions

from mm_spine.processors.chat import content, encode
from mm_spine.processors.markers import mismatch
from mm_spine.processors.vision import BadQuestion


def turns(prompt: str, n: int) -> list[str | int]:
    """Texts, and the numbers of images, in the order in which a model gets them."""
    return [part[part["type"]] for part in content(prompt, n)]


@pytest.mark.parametrize(
    ("prompt", "n", "parts"),
    [
        ("Left <image> right <image> same?", 2, ["Left ", 1, " right ", 2, " same?"]),
        ("a <img> b <IMAGE>", 2, ["a ", 1, " b ", 2]),
        ("<image_2> then <image_1>", 2, [2, " then ", 1]),
        ("<|image_1|> and <|image_2|>", 2, [1, " and ", 2]),
        ("<img2>, then <image>", 2, [2, ", then ", 1]),
        ("<image> x <image> y", 1, [1, " x <image> y"]),
        ("end <image>", 2, [2, "end ", 1]),
        ("the tag <img>", 0, ["the tag <img>"]),
        ("<image src=a>", 1, [1, "<image src=a>"]),
    ],
)
def test_placeholders_of_other_frameworks_are_places(prompt: str, n: int, parts: list[str | int]) -> None:
    assert turns(prompt, n) == parts


@pytest.mark.parametrize(
    ("prompt", "n", "said"),
    [
        ("What?", 2, None),
        ("<image> and <image>", 2, None),
        ("<image1>, in <image1>", 1, None),
        ("<image>", 2, "marks 1 of 2 images"),
        ("<image> <image>", 1, "2 marks such as <image>, and it has 1 image;"),
        ("<img>", 0, "1 mark such as <image>, and it has 0 images"),
        ("see <image_3>", 2, "marks <image_3>, and it has 2 images"),
    ],
)
def test_too_many_and_too_few_are_said(prompt: str, n: int, said: str | None) -> None:
    found = mismatch(prompt, n)
    assert found is None if said is None else said in str(found)


def test_a_question_from_python_is_named_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    question = replace(tiny_questions(1)[0], id="odd\n\x1b[2J", prompt="<image> or <image>?")
    with caplog.at_level(logging.WARNING):
        encode(question, tiny_processor())
    assert [record.getMessage()[:15] for record in caplog.records] == ["odd\\n\\x1b[2J: i"]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"prompt": "half \ud800 a character"}, "its prompt holds half a character"),
        ({"id": "sur\ud800id"}, r"sur\\ud800id: its id holds half a character"),
        ({"prompt": "x" * 10_000_000}, "10,000,000 characters is longer than"),
        ({"prompt": "a <|image_pad|> b"}, r"special token <\|image_pad\|>"),
        ({"id": "esc\x1b[2J\n", "prompt": " "}, r"^esc\\x1b\[2J\\n: the question is empty$"),
    ],
)
def test_what_cannot_be_asked_is_refused_at_once_and_by_name(changes: dict[str, str], why: str) -> None:
    with pytest.raises(BadQuestion, match=why):
        encode(replace(tiny_questions(1)[0], **changes), tiny_processor())
