"""Boxes: their forms, classes by IoU without chains, and grades."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from linear import linear

from mm_spine.processors.answers import box, grade, parse, same
from mm_spine.types import Answer, AnswerSpec
from mm_spine.voting import representative, vote

SPEC = AnswerSpec("box")


@pytest.mark.parametrize(
    ("response", "key"),
    [
        ("[10, 20, 30, 40]", "[10, 20, 30, 40]"),
        ("The box is (10, 20, 30.50, 40).", "[10, 20, 30.5, 40]"),
        ('```json\n[{"bbox_2d": [10, 20, 30, 40], "label": "cat"}]\n```', "[10, 20, 30, 40]"),
        ('{"bbox": [0.1, 0.25, 0.3, 0.4]}', "[0.1, 0.25, 0.3, 0.4]"),
        ("<|object_ref_start|>cat<|object_ref_end|><|box_start|>(10,20),(30,40)<|box_end|>", "[10, 20, 30, 40]"),
        ("<ref>cat</ref><box>(10,20),(30,40)</box>", "[10, 20, 30, 40]"),
        ("<ref>cat</ref><box>[[10, 20, 30, 40]]</box>", "[10, 20, 30, 40]"),
        ("<think>[1, 2, 3, 4]</think>\n[10, 20, 30, 40]", "[10, 20, 30, 40]"),
        (r"First [1, 2, 3, 4], better \boxed{[10, 20, 30, 40]}", "[10, 20, 30, 40]"),
        (r"\boxed{10, 20, 30, 40}", "[10, 20, 30, 40]"),
        ("The dog is at [1, 2, 3, 4].\nThe cat is at [10, 20, 30, 40].", "[10, 20, 30, 40]"),
        ("[30, 40, 10, 20]", "[10, 20, 30, 40]"),  # the other corner first
        ("[-0.0, 0, 30, 40]", "[0, 0, 30, 40]"),
        ("[1, 2, 3, 4] or [10, 20, 30, 40]", None),
        ('[{"bbox_2d": [10, 20, 30, 40]}, {"bbox_2d": [1, 2, 3, 4]}]', None),
        ("[10, 20, 10, 40]", None),  # no area
        ("[10, 20, 30]", None),
        ("[10, 20, 30, 40, 50]", None),
        ("[10, 20, 30, 4", None),  # cut off
        (r"[1, 2, 3, 4] \boxed{[10, 20", None),
        ("There is no cat.", None),
        ("", None),
    ],
)
def test_the_forms_of_a_box(response: str, key: str | None) -> None:
    found = parse(response, SPEC)
    assert (found.text if found else None) == key


def made(*corners: int) -> Answer:
    text = f"[{', '.join(map(str, corners))}]"
    return Answer(text, text)


# Side 10, shifted along x: IoU of shift s is (10 - s) / (10 + s), so that 3 is the same (0.54) and 4 is not (0.43).
SHIFTED = [made(s, 0, s + 10, 10) for s in range(13)]


def test_a_chain_of_boxes_is_not_one_class() -> None:
    a, b, c = SHIFTED[0], SHIFTED[3], SHIFTED[6]
    assert same(a, b, SPEC) and same(b, c, SPEC) and not same(a, c, SPEC)
    assert box.classes([a, b, c], SPEC) == [b.text] * 3, "both agree with the one in the middle"
    four = [SHIFTED[s] for s in (0, 3, 6, 9)]
    names = box.classes(four, SPEC)
    assert len(set(names)) == 2 and names[0] != names[3]


def test_the_class_with_the_most_votes_wins_and_its_medoid_is_the_answer() -> None:
    answers = [SHIFTED[0], SHIFTED[1], SHIFTED[1], SHIFTED[2], made(50, 50, 60, 60), None]
    outcome, classes = vote(answers, SPEC, "q")
    assert outcome.answer == SHIFTED[1].text and outcome.counts == {SHIFTED[1].text: 4, "[50, 50, 60, 60]": 1}
    assert (outcome.share, outcome.n_parsed) == (4 / 6, 5)
    assert representative(answers, classes, outcome.answer) == SHIFTED[1]
    # The medoid is not the shortest text of its class.
    long = [made(0, 0, 100, 100), made(1, 0, 101, 100), made(9, 0, 99, 99)]
    outcome, classes = vote(long, SPEC, "q")
    assert representative(long, classes, outcome.answer) in long[:2]


@given(st.lists(st.sampled_from([None, *SHIFTED]), min_size=1, max_size=9), st.randoms())
def test_classes_do_not_depend_on_the_order_and_every_member_agrees_with_one(
    answers: list[Answer | None], shuffled: random.Random
) -> None:
    names = dict(zip(answers, box.classes(answers, SPEC), strict=True))
    order = shuffled.sample(answers, len(answers))
    assert [names[answer] for answer in order] == box.classes(order, SPEC)
    for name in {name for name in names.values() if name}:
        members = [answer for answer in names if answer and names[answer] == name]
        assert name in {answer.text for answer in members}
        assert any(all(same(a, b, SPEC) for b in members) for a in members)


def test_the_threshold_is_that_of_the_spec() -> None:
    strict = AnswerSpec("box", iou=0.9)
    assert box.classes(SHIFTED[:2], SPEC) == [SHIFTED[0].text] * 2
    assert len(set(box.classes(SHIFTED[:2], strict))) == 2
    found = grade(SHIFTED[1], "[0, 0, 10, 10]", SPEC)
    assert (found.score, found.correct) == (1.0, True)
    assert found.why == "IoU 0.82 of [1, 0, 11, 10] with [0, 0, 10, 10] is at least 0.5."
    found = grade(SHIFTED[1], ["[50, 0, 60, 10]", "[0, 0, 10, 10]"], strict)
    assert not found.correct and found.why.endswith("with [0, 0, 10, 10] is below 0.9.")
    assert not grade(None, "[0, 0, 10, 10]", SPEC).correct
    with pytest.raises(ValueError, match="is not of kind 'box'"):
        grade(SHIFTED[1], "left", SPEC)


def test_the_iou_of_every_pair_is_that_of_counted_pixels() -> None:
    boxes = [(0, 0, 4, 4), (2, 1, 6, 3), (4, 0, 8, 4), (0, 0, 8, 4), (1, 1, 2, 2)]
    pixels = [{(x, y) for x in range(a, c) for y in range(b, d)} for a, b, c, d in boxes]
    for i, j in itertools.product(range(len(boxes)), repeat=2):
        counted = len(pixels[i] & pixels[j]) / len(pixels[i] | pixels[j])
        assert box.iou(made(*boxes[i]).text, made(*boxes[j]).text) == pytest.approx(counted, abs=1e-12)


@pytest.mark.parametrize(
    ("piece", "key"),
    [("[1, ", None), ("[1, 2, 3, 4]", "[1, 2, 3, 4]"), ("1 ", None), ('"bbox_2d": [', None), ("(", None)],
)
def test_a_megabyte_is_read_in_linear_time(piece: str, key: str | None) -> None:
    with linear(piece):
        answer = parse(piece * (1_000_000 // len(piece)), SPEC)
    assert (answer.key if answer else None) == key
