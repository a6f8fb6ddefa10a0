# ruff: noqa: E501
"""Cases of answers that were once read wrong, from the shared list where it is there, and variations of each kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mm_spine.processors.answers import grade, known_kinds, parse, same
from mm_spine.types import AnswerSpec

SHARED = Path(__file__).parents[2] / ".." / "shared" / "cases" / "answers.jsonl"
INTEGER, MATH, TYPED = AnswerSpec("integer"), AnswerSpec("math"), AnswerSpec("typed", value_type="integer")
YES_NO = AnswerSpec("choice", ("Yes", "No"))
FOUR = AnswerSpec("choice", ("a1", "b2", "c3", "d4"))
NUMBERS = AnswerSpec("choice", ("2", "20", "4", "6"))


def found(response: str, spec: AnswerSpec) -> str | None:
    answer = parse(response, spec)
    return None if answer is None else answer.text


def right(response: str, gold: str, spec: AnswerSpec) -> bool:
    try:
        return grade(parse(response, spec), gold, spec).correct
    # A gold such as "correct" may be none of its kind.
    except ValueError:
        return False


def test_the_shared_cases() -> None:
    if not SHARED.exists():
        pytest.skip(f"the shared cases are not beside this checkout ({SHARED.resolve()})")
    wrong = []
    for line in SHARED.read_text().splitlines():
        case: dict[str, Any] = json.loads(line)
        spec = AnswerSpec(
            case["kind"],
            tuple(case.get("choices", ())),
            value_type=case.get("value_type"),
            question=case.get("prompt", ""),
        )
        if right(case["response"], case["answer"], spec) is not case["expected"]:
            wrong.append(case)
    assert wrong == []


@pytest.mark.parametrize(
    ("response", "gold", "correct"),
    [
        # Products and mixed numbers.
        (r"\boxed{2(3)}", "6", True),
        (r"\boxed{(2)(3)}", "5", False),
        (r"\boxed{2(\frac{1}{2})}", "2.5", False),
        (r"\boxed{2(\frac{1}{2})}", "1", True),
        (r"\boxed{2\frac{1}{2}}", "2.5", True),
        (r"\boxed{3(x+1)}", "3x+3", True),
        # Variables are not units.
        (r"\boxed{s^2-2s}", "s^{2}-2 s", True),
        (r"\boxed{a+2}", "a+2 m", False),
        (r"\boxed{2}", "2 s", False),
        (r"\boxed{2}", "2 ab", False),
        (r"\boxed{12\text{ m}}", "12", True),
        (r"\boxed{12 \mathrm{~s}}", "12", True),
        (r"\boxed{12}", r"12\text{ m/s}", True),
        (r"\boxed{12 km/h}", "12", True),
        ("The answer is 12 m.", "12", True),
        # Units with exponents, in Chinese, and temperatures.
        ("The area is (8*12)/2 = 48 cm^2", "48", True),
        (r"The volume is 12 \text{ cm}^3", "12", True),
        (r"\boxed{5厘米}", "5", True),
        (r"\boxed{5\text{平方米}}", "5", True),
        (r"\boxed{3千克}", "3", True),
        (r"\boxed{5万}", "5", False),
        (r"\boxed{30^\circ\text{C}}", "30", True),
        # What a sentence announces.
        ("Answer: The value of $x$ is 5.", "5", True),
        ("Answer: The area of triangle $ABC$ is $12$.", "12", True),
        ("Answer: $x = 5$", "5", True),
        ("So our answer is correct.", "correct", False),
        ("The answer is $12$. Our answer is correct.", "12", True),
        # Tiny and huge values.
        (r"\boxed{\frac{1}{19!}}", r"\frac{1}{20!}", False),
        (r"\boxed{2^{-99}}", "2^{-98}", False),
        (r"\boxed{10^{-9}}", r"2 \cdot 10^{-9}", False),
        (r"\boxed{10^{-9}}", "0", False),
        (r"\boxed{20!}", "20!+1", False),
        (r"\boxed{(0, 2^{-99})}", "(0, 2^{-98})", False),
        (r"\boxed{\frac{20}{20!}}", r"\frac{1}{19!}", True),
        # Forms of a number.
        (r"x \approx 7. \boxed{\approx 7}", "7", True),
        (r"\boxed{\text{about } 7}", "7", True),
        (r"\boxed{约7}", "7", True),
        (r"\boxed{1e3}", "1000", True),
        (r"\boxed{2.5e-3}", "0.0025", True),
        (r"\boxed{2e}", "2", False),
        (r"\boxed{0.\overline{3}}", r"\frac{1}{3}", True),
        (r"\boxed{0.1\overline{6}}", r"\frac{1}{6}", True),
        (r"\boxed{0.333\ldots}", r"\frac{1}{3}", True),
        (r"\boxed{0.\overline{3}}", "0.3", False),
        ("The answer is 12 500.", "12500", True),
        ("The answer is 12'500.", "12500", True),
        # Intervals.
        (r"\boxed{[1,2)}", r"1\le x<2", True),
        (r"\boxed{[1,2)}", "(1,2)", False),
        (r"\boxed{x \ge 1}", r"[1,\infty)", True),
        (r"\boxed{(-\infty,1)\cup(2,\infty)}", r"(2,\infty)\cup(-\infty,1)", True),
        # Nothing committed to.
        ("It is 3 or 4.", "4", False),
        (r"So the answer is \boxed{12", "12", False),
        ("The area is 5 * 7 = 35. Next we compute the volume which", "35", False),
        ("I cannot determine the 3 angles.", "3", False),
    ],
)
def test_mathematics(response: str, gold: str, correct: bool) -> None:
    assert right(response, gold, MATH) is correct


@pytest.mark.parametrize(
    ("response", "spec", "letter"),
    [
        ("Therefore, none of the options A, B, C, D is correct.", FOUR, None),
        ("Neither A nor D is correct.", FOUR, None),
        ("Choose the correct option letter:\n\n(A) a1\n(B) b2\n(C) c3", FOUR, None),
        ("Choose from (A) a1, (B) b2, (C) c3 or (D) d4", FOUR, None),
        ("(A) a1\n(B) b2\n(C) c3\n(D) d4\n\nThe answer is (C).", FOUR, "C"),
        ("So x = 2√5.", NUMBERS, None),
        ("So x = 3·2.", NUMBERS, None),
        ("So x = 2π.", NUMBERS, None),
        ("Thus the answer is 20√10.", NUMBERS, None),
        ("Thus the answer is 20.", NUMBERS, "B"),
        ("If x is larger, then the answer is (A) Yes. Otherwise, the answer is (B) No.", YES_NO, None),
        ("If it were larger, the answer would be (A).", YES_NO, None),
        ("Suppose the answer is (A).", YES_NO, None),
        ("A: No", YES_NO, "B"),
        ("A: Yes", YES_NO, "A"),
        ("A: No. The map shows it.", YES_NO, "B"),
        ("No, X is not below. It is on the wall.", YES_NO, "B"),
        ("Yes, it is. It hangs there.", YES_NO, "A"),
        ("The green curve is a logarithm. (D)", FOUR, "D"),
        ("The value is **(C) c3**. I hope this helps!", FOUR, "C"),
        ("The value is (C) c3. Let me know if you have any questions.", FOUR, "C"),
        ("因此，选项为(D)。", FOUR, "D"),
        ("所以正确的是(D)。", FOUR, "D"),
        ("不应选(D)。", FOUR, None),
        ("The missing amount is option **B. b2**.", FOUR, "B"),
        ("It is not option B.", FOUR, None),
        (r"Answer: \( \text{D} \) d4", FOUR, "D"),
        ("A, b, c", AnswerSpec("choice", tuple("ABCDE")), None),
        ("(D) 18", AnswerSpec("choice", ("9", "12", "18", "18")), "C"),
        ("The answer is (Z).", AnswerSpec("choice", tuple(f"option {i}" for i in range(26))), "Z"),
        ("The answer is (K).", FOUR, None),
    ],
)
def test_letters(response: str, spec: AnswerSpec, letter: str | None) -> None:
    assert found(response, spec) == letter


def test_where_options_are_letters_the_label_counts_unless_the_official_grader_takes_both() -> None:
    options = ("A", "B", "D", "C")
    assert not right("Answer: C", "D", AnswerSpec("choice", options))
    assert right("Answer: D", "D", AnswerSpec("choice", options))
    assert right("Answer: C", "D", AnswerSpec("math_or_choice", options))  # MATH-Vision's


@pytest.mark.parametrize(
    ("response", "correct"),
    [(r"\boxed{5,4,3,2,1}", False), (r"\boxed{1,2,3,4,5}", False), (r"\boxed{2,1,3,5,4}", True), (r"\boxed{B}", True)],
)
def test_orders_are_no_sets_where_options_are_orders(response: str, correct: bool) -> None:
    spec = AnswerSpec("math_or_choice", ("$1,2,3,4,5$", "$2,1,3,5,4$", "$2,1,5,3,4$"))
    assert right(response, "B", spec) is correct


def test_options_in_one_unit_are_read_as_numbers() -> None:
    spec = AnswerSpec("math_or_choice", ("11 m", "12 m", "13 m"))
    assert found(r"\boxed{12}", spec) == found(r"\boxed{12 m}", spec) == found(r"\boxed{12\text{ m}}", spec) == "B"


@pytest.mark.parametrize(
    ("question", "alike"),
    [
        (
            "What is the capital of France?",
            ("Paris", "The capital of France is Paris.", "Paris is the capital of France", "It's Paris.", "Capital: Paris",
             "Paris. It is the capital of France.", "Sure! The capital is Paris, which lies on the Seine."),
        ),
        ("What color is the car?", ("red", "The car is red.", "A red car.", "The color of the car is red.", "It is red")),
        ("Who wrote Hamlet?", ("Shakespeare", "Shakespeare wrote Hamlet.", "Hamlet was written by Shakespeare.")),
        ("What is the man wearing?", ("a red hat", "The man is wearing a red hat.", "He is wearing a red hat.")),
        ("What animal is in the picture?", ("a dog", "There is a dog in the picture.", "The picture shows a dog.")),
        ("Where is the lesion?", ("left lung", "The lesion is located in the left lung.", "In the left lung.")),
        ("What is the capital of China?", ("Beijing", "The capital of China is called Beijing.",
         "The capital of China is Beijing, a vibrant city known for its culture.",
         "The capital of China is Beijing, located in the east.", "The capital is Beijing, the largest city in the world.")),
        ("Which city is the capital?", ("St. John's", "The capital is St. John’s.", "It is St. John's. It is a city.")),
        ("What is the capital of the U.S.?", ("Washington, D.C.", "The capital of the U.S. is Washington, D.C.",
         "The capital of the U.S. is Washington, D.C., which lies on a river.")),
        ("Paris is the capital of which country?", ("France", "Paris is the capital of France.",
         "The capital of France is Paris.", "Paris is the capital of France, a European country on the Atlantic.")),
        ("图中显示的是什么器官？", ("肺", "图中显示的器官是肺。", "肺是图中显示的器官。")),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["text", "medical"])
def test_a_sentence_around_an_answer_is_the_answer(kind: str, question: str, alike: tuple[str, ...]) -> None:
    spec = AnswerSpec(kind, question=question)
    keys = {response: found(response, spec) for response in alike}
    assert len(set(keys.values())) == 1 and None not in keys.values(), keys
    assert all(right(response, alike[0], spec) for response in alike)
    assert all(found(key, spec) == key for key in keys.values() if key)


@pytest.mark.parametrize(
    ("question", "different"),
    [
        ("What is the capital of France?", ("Paris", "Paris is not the capital of France.", "France", "not Paris")),
        ("Is the left or right lung affected?", ("The left lung is affected.", "The right lung is affected.")),
        ("Who is the author of the book?", ("The author is Dumas, the younger.", "The author is Dumas, the elder.")),
        ("Which Bush is it?", ("It is Bush, the first president of two.", "It is Bush, the second president of two.")),
        ("What are the pets?", ("The pets are a dog, a cat and a bird.", "The pets are a dog, a cat and a fish.")),
        ("Which saint is it?", ("St. John", "St. Paul", "Dr. John")),
        ("Which is larger, A or B?", ("A is larger than B", "B is larger than A", "A", "B")),
        ("What is the relation between A and B?", ("A is larger than B", "B is larger than A")),
        ("What is in the left lung and the right lung?", ("The left lung has a mass", "The right lung has a mass")),
        ("What is right of the left lung?", ("the right lung", "the left lung", "the right heart", "the left heart")),
        ("How many dogs and cats are there?", ("two dogs", "three dogs", "two cats")),
        ("哪个肺有病变，左肺还是右肺？", ("左肺", "右肺")),
        ("肺部有什么炎症？", ("肺炎", "胃炎")),
    ],
)
@pytest.mark.parametrize("kind", ["text", "medical", "vqa"])
def test_different_answers_stay_different(kind: str, question: str, different: tuple[str, ...]) -> None:
    spec = AnswerSpec(kind, question=question)
    answers = [parse(response, spec) for response in different]
    assert None not in answers
    pairs = [(a, b) for i, a in enumerate(answers) for b in answers[:i] if a and b and same(a, b, spec)]
    assert pairs == []


REFUSALS = (
    "I am not able to tell from this image.",
    "I cannot determine the answer.",
    "I'm sorry, but I can't help with that.",
    "I do not know.",
    "It cannot be determined from the picture.",
    "There is not enough information to answer.",
    "The image does not provide any information about the age gap between the two people.",
    "无法确定。",
)


@pytest.mark.parametrize("response", REFUSALS)
@pytest.mark.parametrize("kind", sorted(known_kinds()))
def test_a_refusal_commits_to_nothing(kind: str, response: str) -> None:
    choices = ("Liver", "Two", "Lung") if kind in ("choice", "math_or_choice") else ()
    value_type = "integer" if kind == "typed" else None
    assert parse(response, AnswerSpec(kind, choices, value_type=value_type, question="Which organ is shown?")) is None


# The answers of the kind `box` are rectangles: \\boxed{} holds four numbers there.
@pytest.mark.parametrize("kind", sorted(set(known_kinds()) - {"box"}))
def test_a_box_that_never_closes_commits_to_nothing(kind: str) -> None:
    value_type = "integer" if kind == "typed" else None
    said = {"choice": "B", "yes_no": "yes", "yes_no_maybe": "yes"}.get(kind, "12")
    spec = AnswerSpec(kind, value_type=value_type)
    for response in (
        rf"So the answer is \boxed{{{said}",
        rf"It is $\boxed{{\text{{{said}}}",
        rf"{said} so \boxed{{{said}",
    ):
        assert parse(response, spec) is None
    assert parse(rf"\boxed{{{said}}} and then \boxed{{{said}", spec) is not None
    assert parse(rf"The answer is {said}. So \boxed{{{said}", spec) is not None


@pytest.mark.parametrize("kind", ["text", "medical", "vqa"])
def test_an_answer_stated_first_and_then_explained_counts(kind: str) -> None:
    spec = AnswerSpec(kind, question="Which organ is shown?")
    for response in (
        "Liver. I cannot tell its size.",
        "It is the liver, because of its shape.",
        "The organ is the liver.",
    ):
        assert (parse(response, spec) or ("", ""))[1] == "liver"
    assert parse("The organ that is shown is the", spec) is None


PIECES = (
    *("7", "12", "500", "3.5", "0", "1,234", "12 500", "12'500", "1e3", "-", "+", " ", " ", ".", ",", "/", "=", "x"),
    *("^2", "^\\circ", "%", " cm", " m", "厘米", " apples", "\\text{ m}", "$", "\\boxed{", "}", "{", "(", ")", "\n"),
    *("The answer is ", "Answer: ", " or ", " and ", "about ", "It is ", "\\frac{1}{2}", "\\approx ", "!", "not "),
)  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=10).map("".join) | st.text(max_size=20))
@settings(max_examples=800)
def test_integer_and_math_agree_on_every_text_that_both_read(text: str) -> None:
    whole, value = parse(text, INTEGER), parse(text, MATH)
    assert whole is None or (value is not None and value.key == whole.key)
    typed = parse(text, TYPED)
    if whole is not None:
        assert grade(whole, whole.text, INTEGER).correct and right(rf"\boxed{{{whole.text}}}", whole.text, MATH)
        assert typed is None or typed.text is not None


@pytest.mark.parametrize("response", ["It is 3 or 4.", "It is between 3 and 4.", "There are 3, or 4."])
@pytest.mark.parametrize("spec", [INTEGER, MATH, TYPED], ids=lambda spec: spec.kind)
def test_two_candidates_commit_to_none(response: str, spec: AnswerSpec) -> None:
    assert parse(response, spec) is None
