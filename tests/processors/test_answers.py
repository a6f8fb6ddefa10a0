"""Responses -> answers: one row per trap."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mm_spine.processors import answers
from mm_spine.processors.answers import grade, known_kinds, parse, same
from mm_spine.processors.answers.extraction import last_boxed
from mm_spine.types import Answer, AnswerSpec

INTEGER, YES_NO, TEXT, LETTERS = (AnswerSpec(kind) for kind in ("integer", "yes_no", "text", "choice"))
DRUGS = AnswerSpec("choice", ("aspirin", "ibuprofen", "vitamin D", "paracetamol"))


def found(response: str, spec: AnswerSpec) -> str | None:
    answer = parse(response, spec)
    return None if answer is None else answer.key


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\boxed{7}", "7"),
        (r"\boxed{7} or \boxed{8}", "8"),
        (r"\boxed{\text{(B)}}", r"\text{(B)}"),
        (r"\boxed{\boxed{7}}", "7"),
        (r"\boxed{7} and then \boxed{8", "7"),  # cut off: the last that balances
        (r"\boxed{a \} b}", r"a \} b"),
        (r"\boxed {7}", "7"),
        (r"} \boxed{7} {", "7"),
        (r"\boxed{}", ""),
        ("no box {7}", None),
    ],
)
def test_last_balanced_box(text: str, content: str | None) -> None:
    assert last_boxed(text) == content


@pytest.mark.parametrize(
    ("response", "key"),
    [
        *(
            (form, "7")
            for form in ("7", "7.0", "7.00", "07", "+7", "7.", "$7$", "**7**", r"\boxed{7}", r"\boxed{x = 7}")
        ),
        (r"\boxed{\text{7 apples}}", "7"),
        *((form, "1234") for form in ("1,234", r"\boxed{1{,}234}", "1234.0", r"\boxed{1\,234}")),
        ("-5", "-5"),
        ("\N{MINUS SIGN}5", "-5"),
        ("-0", "0"),
        ("9 - 2 gives 9-2", "2"),  # a difference holds no negative number
        (r"3 + 4 = 7, so \boxed{7}, I checked 12 times", "7"),
        (r"The answer is 9. No: \boxed{7}", "7"),
        ("The answer is 7. I used 2 images.", "7"),
        ("There are 7 shelves with less than 12 books.</s>", "7"),
        ("The answer is 3 + 4 = 7.", "7"),
        ("Final answer: 7", "7"),
        ("**Answer:**\n\n7", "7"),
        ("the answer to the question is 7, not 8", "7"),
        ("The answer is not 3, it is 8", "8"),
        ("The answer is 3. Wait, the answer is 7.", "7"),
        ("first 3, then 5", "5"),
        ("there are 1, 2, 3", "3"),
        *((form, None) for form in ("3.5", "the answer is 3.5", "7.05", ".5", "1e-5", "3/4", "7^2", "x7", "seven", "")),
        (r"\boxed{3.5} from 7", None),  # a box commits, also to what is no integer
        (r"7 \boxed{}", None),
        (r"\boxed{3, 4}", None),
        (r"\boxed{\frac{14}{2}}", "7"),
        ("7cm", "7"),
        ("1e5", "100000"),
        ("There are 12 500 of them.", "12500"),
        ("12'500", "12500"),
        (r"\boxed{42^\circ}", "42"),
        (r"\boxed{5厘米}", "5"),
        ("The answer is 7 m.", "7"),
        ("It is 3 or 4.", None),
        ("It is between 3 and 4.", None),
        (r"So the answer is \boxed{12", None),
        (r"There are 3, so $\boxed{12", None),
        (r"The answer is 7. In other words \boxed{8", "7"),
        ("The area is 5 * 7 = 35. Next we compute the volume which", None),
        ("The image does not show how many of the 12 eggs are left.", None),
        (r"the answer is \frac{3}{4}", None),
        (r"\boxed{\sqrt{49}}", None),
        ("7\N{SUPERSCRIPT TWO}", None),
        ("9" * 5000, "9" * 5000),  # more digits than int() takes
    ],
)
def test_integer(response: str, key: str | None) -> None:
    assert found(response, INTEGER) == key


@pytest.mark.parametrize(
    ("response", "key"),
    [
        ("yes, it is abnormal", "yes"),
        ("Yes, I know.", "yes"),
        ("It is abnormal.", None),
        ("I know it is noon.", None),
        ("The finding is abnormal, so yes.", "yes"),
        ("No.", "no"),
        ("**Yes**", "yes"),
        (r"\boxed{\text{No}}", "no"),
        (r"Yes at first, but \boxed{no}", "no"),
        (r"Yes. \boxed{not}", None),
        ("The answer is no.", "no"),
        ("Yes? I looked again: the answer is no", "no"),
        ("The lungs look clear.\nNo", "no"),
        ("cannot be determined", None),
        ("It cannot be determined; there is no image.", None),
        ("The answer cannot be determined, yes", None),
        ("There is no way to tell.", None),
        ("Yes, although its size cannot be determined.", "yes"),
        ("yes or no?", None),
        ("Yes/no", None),
        ("a yes here and a no there", None),
        ("a no-show", None),
    ],
)
def test_yes_no(response: str, key: str | None) -> None:
    assert found(response, YES_NO) == key


FORMS_OF_B = [
    *("B", "(B)", "B.", "B)", "**B**", "b", r"\boxed{B}", r"\boxed{\text{(B)}}", r"\boxed{b}", "$\\text{B}$"),
    *("B. ibuprofen", "(B) ibuprofen", r"\boxed{B. ibuprofen}", "ibuprofen", r"\boxed{ibuprofen}"),
    *("the answer is B", "The answer is: b.", "**Answer:** B", "Answer: B. ibuprofen", "\nFinal answer:\nB\n"),
    *("The answer is $\\text{B}$.", "The correct answer is B - ibuprofen", "The answer is ibuprofen."),
    *("I choose B", "Option B is correct.", "(B) is the right choice", "Therefore, the best option is:\n\n**(B)**"),
]


@pytest.mark.parametrize("response", FORMS_OF_B)
def test_a_letter_in_every_form(response: str) -> None:
    assert found(response, DRUGS) == "B"


@pytest.mark.parametrize(
    ("response", "key"),
    [
        ("The answer is A. Wait, no, the answer is C.", "C"),  # the last commitment
        ("I first thought A, but it's D.", "D"),
        ("because A is wrong", None),  # eliminations
        ("A. is wrong", None),
        ("Answer: A is wrong", None),
        ("B is incorrect", None),
        ("neither A nor B is correct", None),
        ("I don't think B is correct", None),
        ("I don't think that B is correct", None),
        ("If the answer is B, then", None),
        ("The answer is B because A is wrong", "B"),
        ("B because A is wrong", "B"),
        ("The answer is B, A is wrong", "B"),
        ("The answer is not A, so the answer is B", "B"),
        ("It's not A, so B.", "B"),
        ("A is wrong, B is wrong, hence C", "C"),
        ("The answer is B.\nA. is wrong\nC. is wrong", "B"),
        ("A dog is in the picture.", None),  # the article
        ("The answer is a dog.", None),
        ("The answer is A dog", None),
        ("The answer is a", None),
        ("a", "A"),
        ("The answer is (a).", "A"),
        ("The answer is A or B", None),
        ("The answer is A, B.", None),
        (r"\boxed{B, C}", None),
        ("Vitamin D is the best choice", None),  # a letter in a name
        ("I think it is vitamin D.", "C"),
        ("The answer is B-cell lymphoma", None),
        ("A. aspirin\nB. ibuprofen\nC. vitamin D\nD. paracetamol", None),  # the options repeated
        ("A. aspirin\nB. ibuprofen\nC. vitamin D\n\nThe answer is **B**", "B"),
        ("E", None),  # beyond the four options
        (r"B, or \boxed{42}", None),  # a box commits
        ("I", None),
        ("", None),
    ],
)
def test_choice_traps(response: str, key: str | None) -> None:
    assert found(response, DRUGS) == key


def test_choice_option_text_is_whole() -> None:
    spec = AnswerSpec("choice", ("7", "70", "7.5", "7 cm"))
    assert [found(f"The answer is {text}.", spec) for text in ("7", "70", "7.5", "7 cm", "75")] == [*"ABCD", None]
    assert found("The answer is the aorta", AnswerSpec("choice", ("A. vein", "B. aorta"))) == "B"


def test_choice_without_options_takes_ten_letters() -> None:
    assert [found(letter, LETTERS) for letter in "AJK"] == ["A", "J", None]


def test_choice_grades_labels_and_option_text() -> None:
    assert grade(parse("B", DRUGS), "B", DRUGS).correct
    assert grade(parse("B", DRUGS), "Ibuprofen", DRUGS).correct
    assert grade(parse("ibuprofen", DRUGS), "(B)", DRUGS).correct
    assert not grade(parse("B", DRUGS), ["A", "vitamin D"], DRUGS).correct


def test_choice_where_options_are_letters() -> None:
    spec = AnswerSpec("choice", ("B", "C", "A"))
    assert found("A", spec) == "A"
    assert grade(parse("C", spec), "C", spec).correct
    assert not grade(parse("A", spec), "C", spec).correct  # the gold option's own text: the label counts
    assert not grade(parse("B", spec), "C", spec).correct


@pytest.mark.parametrize(
    ("response", "key"),
    [
        *(
            (form, "blue")
            for form in ("Blue.", "  blue ", r"\boxed{ Blue }", "The answer is Blue.", "(blue)", "“blue”", "*BLUE*!")
        ),
        (r"It is red, no: \boxed{\text{Left  lung}}", "left lung"),
        ("x-ray\nof the  chest", "x-ray of chest"),
        ("the blue one", "blue one"),
        ("A is larger than B", "a is larger than b"),
        ("vitamin A", "vitamin a"),
        ("-5", "-5"),  # a sign, a point and a per cent are no punctuation
        (".5", ".5"),
        ("5%", "5%"),
        ("c++", "c++"),
        ("f(x)", "f(x)"),
        ("?!", None),
        (r"blue \boxed{}", None),
        ("", None),
    ],
)
def test_text(response: str, key: str | None) -> None:
    assert found(response, TEXT) == key


@pytest.mark.parametrize(
    ("spec", "right", "wrong", "gold"),
    [
        (INTEGER, "7.0", "8", "07"),
        (INTEGER, "265", "26", "265.0"),
        (YES_NO, "yes, I know", "no", "Yes"),
        (TEXT, "Blue.", "red", ["green", "BLUE"]),
        (LETTERS, "(c)", "B", "C"),
    ],
)
def test_grade(spec: AnswerSpec, right: str, wrong: str, gold: str | list[str]) -> None:
    verdict = grade(parse(right, spec), gold, spec)
    assert (verdict.score, verdict.correct) == (1.0, True) and verdict.why
    verdict = grade(parse(wrong, spec), gold, spec)
    assert (verdict.score, verdict.correct) == (0.0, False) and verdict.why
    assert grade(None, gold, spec)[:2] == (0.0, False)


def test_an_unreadable_gold_is_a_fault_of_the_data_not_a_wrong_answer() -> None:
    with pytest.raises(ValueError, match="'seven'.*'integer'"):
        grade(parse("7", INTEGER), "seven", INTEGER)
    with pytest.raises(ValueError, match="gold"):
        grade(None, [], TEXT)
    assert grade(parse("7", INTEGER), ["seven", "7"], INTEGER).correct


def test_same_is_equality_of_keys() -> None:
    a, b, c = (parse(text, INTEGER) for text in ("7", r"\boxed{7.0}", "8"))
    assert a and b and c
    assert same(a, b, INTEGER) and not same(a, c, INTEGER)


def test_unknown_kind_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="'intger'.*did you mean 'integer'"):
        parse("7", AnswerSpec("intger"))
    assert {"choice", "integer", "text", "yes_no"} <= set(known_kinds())


def test_a_kind_plugs_in_as_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    shout = replace(answers.KINDS["text"], parse=lambda response, spec: Answer(response.upper(), None))
    monkeypatch.setitem(answers.KINDS, "shout", shout)
    assert parse("hey", AnswerSpec("shout")) == Answer("HEY", None)
    assert "shout" in known_kinds()


PIECES = [
    *("\\boxed{", "}", "{", "answer is ", "Answer: ", "the ", "not ", "A is wrong", "**", "$", "\\text{", "'", ", "),
    *("7", "1,234", ".5", "-", " ", "\n", ". ", "B", "(", ")", "yes", "no", "ß", "É", "İ", "ibuprofen"),
]


@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join) | st.text(max_size=20))
@settings(max_examples=400)
def test_the_name_of_a_class_reads_back_as_itself(response: str) -> None:
    for spec in (INTEGER, YES_NO, DRUGS, LETTERS, TEXT):
        if answer := parse(response, spec):
            assert answer.text == answer.key
            assert grade(answer, answer.text, spec).correct
            if spec is not TEXT:
                assert parse(answer.text, spec) == answer
