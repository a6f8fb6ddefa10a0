"""Forms that set an answer apart, whatever its kind: a tag, JSON, a heading, what is outside the thinking."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from linear import linear

from mm_spine.processors.answers import closes_answer, grade, parse
from mm_spine.processors.answers.extraction import unwrapped
from mm_spine.types import AnswerSpec

DRUGS = ("Aspirin", "Warfarin", "Heparin", "Clopidogrel")
FORMS = (
    "<answer>{}</answer>",
    "<answer>{}",  # cut off by a stop string
    "<think>Let me see. The answer is 77, or maybe (B).</think><answer> {} </answer>\n",
    "<think>\nmaybe no\n</think>\n\n{}",
    "The picture says so. <final_answer>{}</final_answer>",
    '{{"answer": "{}"}}',
    '```json\n{{"reasoning": "I saw it, \\"twice\\"", "final_answer": "{}", "sure": true}}\n```',
    "I looked twice.\n\n### Final Answer\n{}",
    "**Answer**\n\n{}",
    "The answer is <|begin_of_box|>{}<|end_of_box|>.",
    "The answer is “{}”.",
    r"\fbox{{{}}}",
    "Ans: {}",
    "The answer is '{}'.",
    "The answer is **{}**.",
    "答案：{}",
)
ANSWERS = (
    (AnswerSpec("choice", DRUGS), "C", "C"),
    (AnswerSpec("yes_no"), "No", "no"),
    (AnswerSpec("yes_no_maybe"), "maybe", "maybe"),
    (AnswerSpec("integer"), "42", "42"),
    (AnswerSpec("math"), r"\frac{3}{4}", "0.75"),
    (AnswerSpec("math"), "x^2+1", "x^2+1"),
    (AnswerSpec("math"), "(2,3)", "(2,3)"),
    (AnswerSpec("math_or_choice", ("1", "2", "3")), "3", "C"),
    (AnswerSpec("math_or_choice"), "42", "42"),
    (AnswerSpec("medical"), "Right lung", "right lung"),
    (AnswerSpec("medical"), "肺", "肺"),
    (AnswerSpec("medical", ("yes", "no")), "Yes", "yes"),
    (AnswerSpec("vqa"), "red", "red"),
    (AnswerSpec("typed"), "dog", "dog"),
    (AnswerSpec("text"), "Paris", "paris"),
)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("spec", "said", "gold"), ANSWERS)
def test_every_kind_is_read_in_every_form(spec: AnswerSpec, said: str, gold: str, form: str) -> None:
    answer = parse(form.format(said), spec)
    assert grade(answer, [gold] * 10 if spec.kind == "vqa" else gold, spec).correct


@pytest.mark.parametrize(
    ("response", "part"),
    [
        (r"\boxed{5}" + "\n\n### Answer\nSee above.", None),  # a box decides
        (r"<think>\boxed{5}</think> So it is \boxed{6}.", r"So it is \boxed{6}."),
        (r"<think>It is \boxed{5}</think>", ""),  # nothing follows the thinking
        ("<think>The answer is 5, or", ""),  # cut off
        (r"It is \boxed{5}. <think>Is it", ""),  # it had not done thinking
        (r"\boxed{5} <think>Is it? Or \boxed{6}?</think>", r"\boxed{5}"),
        ("<think>5</think> So <think>or 6, 7</think> 8", "So  8"),
        ("It may be 5.</think> 6", "6"),  # the chat template opened the block
        ("<think>I may write <think> here: 5</think> 6", "6"),
        ("◁think▷5◁/think▷6", "6"),
        ("[THINK]5[/THINK]6", "6"),
        ("<seed:think>5</seed:think>6", "6"),
        ("<thinking>5</thinking>6", "6"),
        ("I think> 5", None),
        ("<answer></answer>", None),
        ("<answer>B</answer> is what I said before I looked again: C.", None),
        ('{"answer": "\\frac{1}{2}"}', r"\frac{1}{2}"),  # LaTeX that was not escaped
        ('{"answer": "\\\\frac{1}{2}"}', r"\frac{1}{2}"),
        ('{"answer": [2006, 2007]}', "[2006, 2007]"),
        ('{"answer": "\\u80ba", "reason": "seen"}', "肺"),
        ('<answer>{"answer": 4}</answer>', "4"),
        ("### Answer\nIt is red.\nIt is blue.", None),  # more than a line states more than an answer
    ],
)
def test_the_part_that_states_the_answer(response: str, part: str | None) -> None:
    assert unwrapped(response).strip() == (response if part is None else part)


@pytest.mark.parametrize(("spec", "said"), [(spec, said) for spec, said, _ in ANSWERS])
def test_no_kind_reads_an_answer_in_what_is_only_thought(spec: AnswerSpec, said: str) -> None:
    """The block is left open, or nothing follows it; in both cases the response has no answer."""
    for thought in (f"<think>The answer is {said}.", rf"<think>\boxed{{{said}}}", f"<think>{said}</think>\n"):
        assert parse(thought, spec) is None
        assert not closes_answer(thought)


def test_an_undecided_reply_does_not_fall_back_on_what_was_thought() -> None:
    assert parse("<think>Perhaps yes.</think> It cannot be determined.", AnswerSpec("yes_no")) is None


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("Based on the above, D is the most appropriate.", "D"),
        ("Therefore, B is most appropriate", "B"),
        ("D is not the most appropriate.", None),
        ("Answer - C", "C"),
        ("Option - C is wrong.", None),
        ("so option d is correct", "D"),
        ("option d is not correct", None),
    ],
)
def test_what_commits_to_a_letter(response: str, letter: str | None) -> None:
    answer = parse(response, AnswerSpec("choice", DRUGS))
    assert (answer.text if answer else None) == letter


PIECES = (
    "<answer>",
    "</answer>",
    "</think>",
    "<think>",
    '{"answer": ',
    '"x"',
    "}",
    "### Answer\n",
    "B",
    "\n",
    '"',
    "\\",
)


@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join))
def test_what_is_left_is_a_part_of_the_response(response: str) -> None:
    assert len(unwrapped(response)) <= len(response)


@pytest.mark.parametrize("piece", PIECES)
def test_a_megabyte_is_read_in_linear_time(piece: str) -> None:
    start, end = piece * (1_000_000 // len(piece)), '{"answer": ' + '"\\' * 1000 + "}"
    with linear(piece):
        left = unwrapped(start + end)
    # Thinking that never ends hides all that follows; what ends it, or announces the answer, goes with all before.
    assert left == {"<think>": "", "</think>": end, "### Answer\n": end}.get(piece, start + end)
