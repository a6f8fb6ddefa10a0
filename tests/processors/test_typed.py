"""MathVista's typed answers: one row per trap, the release's own rows, and hostile input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from linear import linear

from mm_spine.processors.answers import grade, parse
from mm_spine.types import AnswerSpec

INTEGER = AnswerSpec("typed", value_type="integer")
YEARS = AnswerSpec("typed", value_type="integer", unit="years")
TWO, ONE = (AnswerSpec("typed", value_type="float", precision=places) for places in (2, 1))
FLOAT = AnswerSpec("typed", value_type="float")
LIST = AnswerSpec("typed", value_type="list")
SET = AnswerSpec("typed", value_type="list", ordered=False)
TEXT = AnswerSpec("typed", value_type="text")
ANGLES = AnswerSpec("typed", ("125°", "120°", "105°", "90°"), value_type="text")
SHARES = AnswerSpec("typed", ("0.33%", "0.31%", "0.30%"), value_type="text")
YES_NO = AnswerSpec("typed", ("yes", "no"), value_type="text")
MODELS = AnswerSpec("typed", ("Soft MoE", "Experts Choice", "不能确定"), value_type="text")
LETTERS = AnswerSpec("typed", ("B", "C", "A"), value_type="text")
ROWS = Path(__file__).parents[2] / "shared" / "data" / "real_rows" / "mathvista" / "rows.jsonl"


def found(response: str, spec: AnswerSpec) -> str | None:
    answer = parse(response, spec)
    return None if answer is None else answer.key


@pytest.mark.parametrize(
    ("response", "key"),
    [
        *(
            (form, "19")
            for form in ("19", "19.0", "19 years", "The answer is 19 years.", r"\boxed{19}", "**19**", "１９")
        ),
        *((form, "19") for form in (r"\boxed{19\text{ years}}", r"\boxed{19\%}", "It is $19$.", r"$x = 19$", "19cm")),
        *(
            (form, "1234")
            for form in ("$1,234", "1,234 miles", r"\boxed{1{,}234}", r"\boxed{1\,234}", r"\boxed{\$1234}")
        ),
        *((form, "-5") for form in ("-5", "\N{MINUS SIGN}5", "$-5$", "The answer is -5.")),
        ("So 12 - 4 = 8 objects.", "8"),
        ("Therefore, the total volume of the measuring cup is 900 mL.", "900"),
        ("Therefore, the perimeter of the rectangle in the image is **6 yards**.\n\nI hope this helps!", "6"),
        ("There were 3 spheres and 2 cylinders. The final number of objects left is 0.", "0"),
        ("There are two cinnamon rolls.", "2"),
        ("There are 2 shelves with more than 5 books.", "2"),
        ("So the answer is that two shelves hold fewer than 12 books.", "2"),
        ("More than 5 percent of them are red.", None),
        ("Picture at 0x7f31a20", None),
        ("There are 4 cups.</s>", "4"),
        ("The tray holds ___ cups in 3 rows.", None),
        ("The answer is three. I used 2 images.", "3"),
        ("the area is 24 cm^2", "24"),
        (r"the area is $24\ \text{cm}^{2}$", "24"),
        ("The answer is 3. Wait, the answer is 7.", "7"),
        ("答案是5", "5"),
        ("共5个", "5"),
        ("3.7", "3.7"),  # no integer, and equal to none
        (r"\boxed{14/2}", "7"),
        (r"\boxed{\frac{3}{4}}", "0.75"),
        (r"\boxed{\frac13}", "1/3"),
        (r"\boxed{1\frac{1}{2}}", "1.5"),
        *(
            (form, None)
            for form in (r"\boxed{5\sqrt{2}}", r"\boxed{2\pi}", r"\boxed{2^3}", r"\boxed{3, 4}", "2:5", "2x")
        ),
        *((form, None) for form in ("", "No number.", r"7 \boxed{}", "1/0", r"\boxed{\frac{1}{0}}", r"\sqrt{49}")),
        (r"\boxed{5\sqrt{2} \approx 7.07}", "7.07"),
        ("1e3", "1000"),
        (r"3 \times 10^{4}", "30000"),
        ("the point A1 and x_2", None),
    ],
)
def test_integer(response: str, key: str | None) -> None:
    assert found(response, INTEGER) == found(response, YEARS) == key


@pytest.mark.parametrize(
    ("response", "spec", "key"),
    [
        *((form, TWO, "6.36") for form in ("6.36", "6.360", "6.3642", r"\boxed{6.36 \text{ cm}}", "6.36%", "~6.36")),
        ("The answer is about 6.4 m.", TWO, "6.4"),
        ("197.25", ONE, "197.2"),  # str(round(float(x), 1)): half to even
        ("2", ONE, "2.0"),
        ("3/4", TWO, "0.75"),
        (r"\boxed{-\frac{1}{3}}", TWO, "-0.33"),
        ("-0.04", ONE, "0.0"),
        ("1.2e-3", AnswerSpec("typed", value_type="float", precision=4), "0.0012"),
        (r"$1.2 \times 10^{-3}$ m", AnswerSpec("typed", value_type="float", precision=4), "0.0012"),
        ("30%", ONE, "30.0"),  # a per cent sign is a unit
        ("1.50", FLOAT, "1.5"),
        (".5", FLOAT, "0.5"),
        ("100", FLOAT, "100"),
        ("[1, 2, 3]", LIST, "[1, 2, 3]"),
        (r"\boxed{[1,2.0, 3]}", LIST, "[1, 2, 3]"),
        (r"\boxed{1, 2, 3}", LIST, "[1, 2, 3]"),
        ("The answer is [3, 1/2].", LIST, "[3, 0.5]"),
        ("The answer is 1, 2 and 3.", LIST, "[1, 2, 3]"),
        ("First [0, 1], finally [4, 5]", LIST, "[4, 5]"),
        (r"\boxed{\{3, 1\}}", SET, "[1, 3]"),
        ("[3, 1]", LIST, "[3, 1]"),
        ("no list", LIST, None),
        (r"\boxed{Blue}", TEXT, "blue"),
    ],
)
def test_float_list_and_text(response: str, spec: AnswerSpec, key: str | None) -> None:
    assert found(response, spec) == key


@pytest.mark.parametrize(
    ("response", "spec", "label"),
    [
        *((form, ANGLES, "A") for form in ("125°", r"\boxed{125^\circ}", r"\boxed{125}", "The answer is 125 degrees.")),
        *((form, ANGLES, "A") for form in ("(A) 125°", "答案为A", "答案是125°", r"\boxed{A}", "So ∠BOC = 125°.")),
        *((form, ANGLES, None) for form in (r"\boxed{25}", r"\boxed{12}", r"\boxed{1250}", "The answer is 0.125.")),
        *((form, SHARES, "C") for form in ("0.30%", r"\boxed{0.3\%}", "The answer is 0.30 %.", r"\boxed{0.30}")),
        *((form, YES_NO, "B") for form in ("no", "(B)", "No.", "The answer is (B) no.", "**No**, it does not.")),
        *((form, MODELS, "A") for form in ("soft moe", r"\boxed{\text{Soft MoE}}", "The correct answer is Soft MoE.")),
        *((form, MODELS, None) for form in (r"\boxed{Soft}", r"\boxed{Soft M0E}", "Sorry, I can't help with images.")),
        *((form, MODELS, "C") for form in ("不能确定", "答案：C", r"\boxed{不能确定}")),
    ],
)
def test_choices(response: str, spec: AnswerSpec, label: str | None) -> None:
    assert found(response, spec) == label


def test_a_number_that_two_options_share_is_no_option() -> None:
    lengths = AnswerSpec("typed", ("5 cm", "5 m", "7 m"))
    assert [found(form, lengths) for form in (r"\boxed{5}", r"\boxed{5 m}", r"\boxed{7}")] == [None, "B", "C"]


def test_the_gold_of_a_choice_is_its_text() -> None:
    assert grade(parse("C", LETTERS), "A", LETTERS).correct  # the option whose text is A
    assert not grade(parse("A", LETTERS), "A", LETTERS).correct  # a letter is a label, as in the official code
    assert not grade(parse("B", LETTERS), "A", LETTERS).correct
    assert grade(parse("(C)", SHARES), "0.30%", SHARES).correct
    assert not grade(parse("(A)", SHARES), "0.30%", SHARES).correct
    assert not grade(None, "no", YES_NO).correct


def test_grades_numbers_by_value_and_ignores_units() -> None:
    assert grade(parse("19 months", YEARS), "19", YEARS).correct
    assert not grade(parse("3.7", INTEGER), "3", INTEGER).correct
    assert grade(parse("6.3649", TWO), "6.36", TWO).correct
    assert not grade(parse("6.37", TWO), "6.36", TWO).correct
    assert not grade(parse("[2, 1]", LIST), "[1, 2]", LIST).correct


def test_an_unknown_value_type_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="'integre'; did you mean 'integer'"):
        parse("7", AnswerSpec("typed", value_type="integre"))


def test_an_unreadable_gold_is_a_fault_of_the_data() -> None:
    with pytest.raises(ValueError, match="gold"):
        grade(parse("7", INTEGER), "seventy-odd", INTEGER)


def released() -> list[tuple[str, AnswerSpec]]:
    if not ROWS.exists():
        return []
    rows = [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [
        (
            row["answer"],
            AnswerSpec("typed", tuple(row["choices"] or ()), row["precision"], row["unit"], row["answer_type"]),
        )
        for row in rows
    ]


@pytest.mark.skipif(not ROWS.exists(), reason="the sample of MathVista's rows is not beside the checkout")
def test_released_golds_grade_correct_in_every_form_and_others_wrong() -> None:
    rows = released()
    assert len(rows) == 40
    for gold, spec in rows:
        for form in (gold, f"\\boxed{{{gold}}}", f"The answer is {gold}.", f"So $x$ it is.\n\n**Answer:** {gold}"):
            assert grade(parse(form, spec), gold, spec).correct, (gold, form)
        others = spec.choices or {
            other for other, peer in rows if not peer.choices and peer.value_type == spec.value_type
        }
        for other in set(others) - {gold} or {"1.5"}:
            for form in (other, f"\\boxed{{{other}}}", f"The answer is {other}."):
                assert not grade(parse(form, spec), gold, spec).correct, (gold, form)


PIECES = [
    *(
        "\\boxed{",
        "}",
        "{",
        "answer is ",
        "Answer: ",
        "[",
        "]",
        ", ",
        "\\frac{",
        "}{",
        "\\text{",
        "=",
        "°",
        "%",
        "×10^",
    ),
    *("7", "12", "1,234", ".5", "-", "/", "e", " ", "\n", ". ", "B", "(", ")", "yes", "no", "two", "\u200f", "٣", "½"),
]
SPECS = (INTEGER, TWO, FLOAT, LIST, SET, ANGLES, YES_NO)


@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join) | st.text(max_size=20))
@settings(max_examples=400)
def test_the_name_of_a_class_reads_back_as_itself(response: str) -> None:
    for spec in SPECS:
        if answer := parse(response, spec):
            assert answer.text == answer.key
            assert parse(answer.text, spec) == answer, spec
            assert grade(answer, answer.text, spec).correct


LONG = 10**6
HOSTILE = {
    "braces": "{" * LONG,
    "closing braces": "}" * LONG,
    "boxes": "\\boxed{" * (LONG // 7),
    "nested boxes": "\\boxed{" * (LONG // 8) + "}" * (LONG // 8),
    "nested text": "\\boxed{" + "\\text{" * (LONG // 7) + "B" + "}" * (LONG // 7) + "}",
    "backslashes": "\\" * LONG,
    "fractions": "\\frac{" * (LONG // 6),
    "digits": "9" * LONG,
    "boxed digits": "\\boxed{" + "9" * LONG + "}",
    "thousands": "1" + ",111" * (LONG // 4),
    "slashes": "1/" * (LONG // 2),
    "signs": "+-" * (LONG // 2),
    "announcements": "The answer is " * (LONG // 14),
    "announced letters": "The answer is A, B. " * (LONG // 20),
    "cues": "so " * (LONG // 3),
    "letters": "A. " * (LONG // 3),
    "lines": "B\n" * (LONG // 2),
    "labelled lines": "A. x\n" * (LONG // 5),
    "spaces": "answer" + " " * LONG + "is B",
    "line ends": "\n" * LONG,
    "marks": "\u200f\u202e\u0000\x1b" * (LONG // 4),
    "brackets": "[" * (LONG // 2) + "]" * (LONG // 2),
    "commas": "[" + "1," * (LONG // 2) + "]",
    "Chinese": "答案是" * (LONG // 3),
    "equals": "=" * LONG,
    "dollars": "$" * LONG,
    "options": "yes no " * (LONG // 7),
    "pairs": "(" * (LONG // 2) + ")" * (LONG // 2),
    "combining": "a" + "\u0301\u0323" * (LONG // 2),
}

READ: dict[str, tuple[str | None, ...]] = {
    "nested text": (None, None, "B", "B", None),
    "digits": (None, None, None, None, "9" * 20_000),
    "boxed digits": (None, None, None, None, "9" * LONG),
    "thousands": (None, None, None, None, "1" * 15_000),
    "lines": (None, None, "B", "B", None),
    "labelled lines": (None, None, "A", "A", None),
    "commas": ("1.0", None, None, None, "1"),
}
"""What is read of them as a number of two digits, a list, a choice of angles, a choice of words and an integer.

Nothing is read of the others. Of a response outside a box, only its last 20,000 characters are searched for numbers.
"""
READ_AS_TEXT = {
    "boxes": None, "nested boxes": None, "cues": None, "line ends": None, "dollars": None,
    "nested text": "b", "announcements": "the", "announced letters": "a, b", "spaces": "b",
}  # fmt: skip
"""What is read of them as a text; of the others it is nearly all."""


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_a_million_hostile_characters_are_read_in_linear_time(name: str) -> None:
    for spec, key in zip(
        (TWO, LIST, ANGLES, AnswerSpec("choice", ("yes", "no")), AnswerSpec("integer")),
        READ.get(name, (None,) * 5),
        strict=True,
    ):
        with linear(spec):
            answer = parse(HOSTILE[name], spec)
        assert (answer.key if answer else None) == key
    with linear("text"):
        text = parse(HOSTILE[name], AnswerSpec("text"))
    if name in READ_AS_TEXT:
        assert (text.key if text else None) == READ_AS_TEXT[name]
    else:
        assert text is not None and len(text.key) > 0.99 * LONG


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", ["1e400", "-1e400", "1e-400", "1e999999999", "9" * 5000, "0." + "3" * 5000, "1/" + "9" * 5000]
)
def test_numbers_beyond_a_double_do_not_crash(number: str) -> None:
    for spec in (INTEGER, TWO, FLOAT, LIST):
        for form in (number, f"\\boxed{{{number}}}", f"The answer is {number}."):
            parse(form, spec)
    assert found(number, INTEGER) is None
