"""Medical answers: what is one answer in other words, what is another, and what is none."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from linear import linear

from mm_spine.processors.answers import grade, parse
from mm_spine.processors.answers.medical import read
from mm_spine.types import Answer, AnswerSpec

OPEN = AnswerSpec("medical")
SORTED = AnswerSpec("medical", ordered=False)
CLOSED = AnswerSpec("medical", ("yes", "no"))


def found(response: str, spec: AnswerSpec) -> str | None:
    answer = parse(response, spec)
    return None if answer is None else answer.key


@pytest.mark.parametrize(
    ("one", "other"),
    [
        # The grading rules, and SLAKE in lmms-eval (tasks/slake) and evalscope (benchmarks/slake)
        ("X-Ray", "xray"),
        ("X-Ray", "x ray"),
        ("Chest X-rays", "chest x rays"),
        ("X-Ray", "X光"),
        ("CT (computed tomography)", "ct"),
        ("胸腔（肺部）", "胸腔"),
        ("Left Lung, Right", "left lung right"),
        ("Lung, Liver", "Lung and liver"),
        ("肺、肝", "肺和肝"),
        ("ＣＴ：１．５", "ct 1.5"),
        ("the left lung", "Left lung."),
        ("An abscess", "abscess"),
        ("T2-weighted", "T2 weighted"),
        ("Two", "2"),  # the official preprocessing counts in digits
        ("(lung)", "lung"),  # all there is
        (" Yes. ", "是的。"),
        ("yeah", "有"),
        ("True", "yes"),
        ("No", "没有"),
        ("不包含", "不可以"),
        ("不正常", "否"),
        ("\u200flung\u200f", "lung"),
        ("lung\x00", "lung"),
        (r"\text{Lung}", "**lung**"),
    ],
)
def test_the_same_answer(one: str, other: str) -> None:
    assert read(one, OPEN) == read(other, OPEN) is not None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("left lung", "lung"),
        ("left lung", "right lung"),
        ("lung", "lungs"),  # number is left alone
        ("no abnormality", "no"),  # a finding
        ("not seen", "no"),
        ("None", "no"),
        ("正常", "是"),  # "normal" answers no question by itself
        ("异常", "否"),
        ("有气胸", "有"),
        ("hepatitis A", "hepatitis"),
        ("CD10+", "CD10-"),
        ("1.5", "15"),
        ("Lung, Liver", "Liver, Lung"),
    ],
)
def test_another_answer(one: str, other: str) -> None:
    assert read(one, OPEN) != read(other, OPEN)


def test_values_are_sorted_where_their_order_says_nothing() -> None:
    assert read("Lung, Liver", SORTED) == read("the liver and lung", SORTED) == read("Liver；Lung", SORTED)
    assert read("肺、肝", SORTED) == read("肝和肺", SORTED)
    assert read("Left, Right", OPEN) == "left right"  # in order, as the release has it
    assert read("饱和", SORTED) == "饱和"


REASONING = "The heart is of normal size. The left lung shows an opacity in its lower lobe. " * 5


@pytest.mark.parametrize(
    ("response", "key"),
    [
        (REASONING + r"\boxed{\text{Left Lung}}", "left lung"),
        (REASONING + "The answer is the left lung.", "left lung"),
        (REASONING + "\n**Answer:** Left lung", "left lung"),
        ("图像显示左肺有阴影。答案是左肺。", "左肺"),
        ("答案：左肺", "左肺"),
        ("分析如下。\n答：左肺。", "左肺"),
        ("最终答案应该是：左肺", "左肺"),
        ("答案是右肺。不，答案是左肺。", "左肺"),
        ("Left lung", "left lung"),
        ("Opacity in the lower lobe of the left lung", "opacity in lower lobe of left lung"),
        (REASONING + "\nLeft lung", "left lung"),
        (REASONING, None),  # never a random piece
        (REASONING + "\n" + REASONING, None),
        (r"I will box it: \boxed{}", None),
        (r"I will answer in \boxed{}. The answer is lung.", "lung"),
        (r"lung \boxed{?}", None),
        ("A", "a"),
        ("...", None),
        ("", None),
    ],
)
def test_what_a_response_answers(response: str, key: str | None) -> None:
    assert found(response, OPEN) == key


@pytest.mark.parametrize(
    ("response", "key"),
    [
        ("Yes, there is an opacity.", "yes"),
        ("No pneumothorax is seen", "no"),
        ("yes, it is abnormal", "yes"),
        ("The lungs look abnormal, as I know.", None),
        ("It cannot be determined.", None),
        (r"\boxed{cannot be determined}", None),
        (r"\boxed{\text{Yes}}", "yes"),
        ("Yeah.", "yes"),
        ("False", "no"),
        (REASONING + "Answer: No.", "no"),
        (REASONING + "\nYes", "yes"),
        ("是的，左肺有阴影。", "yes"),
        ("没有气胸", "no"),
        ("未见气胸。", "no"),
        ("存在气胸", "yes"),
        ("左肺清晰。\n没有", "no"),
        ("左肺有阴影。答案：是", "yes"),
        ("不是", "no"),
        ("不对。", "no"),
        ("有没有气胸", None),  # the question
        ("有气胸吗？", None),
        ("是否有气胸", None),
        ("有可能", None),
        ("无法确定", None),
        ("不确定", None),
        ("yes or no?", None),
        (r"\boxed{yes or no}", None),
        ("A", None),
    ],
)
def test_a_closed_question_takes_yes_or_no(response: str, key: str | None) -> None:
    assert found(response, CLOSED) == key


def test_an_open_question_leaves_a_sentence_with_yes_as_it_is() -> None:
    assert found("Yes, in the left lung", OPEN) == "yes in left lung"
    assert found("Yes.", OPEN) == "yes"


def test_a_closed_question_may_have_another_answer() -> None:
    """Words can mislead about a question: its gold is still graded, boxed or announced."""
    for response in (r"\boxed{Left lung}", "The answer is left lung."):
        assert grade(parse(response, CLOSED), "Left Lung", CLOSED).correct
    assert not grade(parse("yes", CLOSED), "Left Lung", CLOSED).correct


def test_the_grade_is_all_or_nothing() -> None:
    assert grade(parse("Left lung", OPEN), "left lung", OPEN)[:2] == (1.0, True)
    assert grade(parse("lung", OPEN), "left lung", OPEN)[:2] == (0.0, False)
    assert grade(parse("没有", OPEN), ["No"], OPEN).correct
    with pytest.raises(ValueError, match="gold answer"):
        grade(None, "...", OPEN)


PIECES = [
    *("left", "lung", "Lungs", "x", "ray", "X-ray", "the ", "a ", "An ", "and", "one", "yes", "No", "CD10", "1.5", "1"),
    *(
        "是",
        "有",
        "没有",
        "和",
        "肺",
        "肝",
        "、",
        "，",
        "。",
        "（",
        "）",
        "Ｘ",
        "光",
        "İ",
        "ﬁ",
        "é",
        "e\u0301",
        "\u0345",
    ),
    *list(" ,.;/&|()+-_'\"?\n\t\x00\u200f\\{}$"),
]


@given(st.lists(st.sampled_from(PIECES), max_size=10).map("".join) | st.text(max_size=15))
@settings(max_examples=500)
def test_the_name_of_a_class_reads_back_as_itself(text: str) -> None:
    for spec in (OPEN, SORTED, CLOSED):
        answer = parse(text, spec)
        if answer is not None:
            assert answer == Answer(answer.key or "", answer.key)
            assert read(answer.text, spec) == answer.key
            assert grade(answer, answer.text, spec).correct


@given(st.lists(st.sampled_from(PIECES), max_size=6).map("".join))
@settings(max_examples=300)
def test_a_gold_boxed_announced_or_bare_is_one_answer(text: str) -> None:
    key = read(text, OPEN)
    if key is not None and key.isalpha():
        assert found(f"\\boxed{{{key}}}", OPEN) == found(f"The answer is {key}.", OPEN) == found(key, OPEN) == key


NOTHING = (None, None, None)
MEGABYTES = {
    "lung, " * 2**17: NOTHING,
    "(" * 2**20: NOTHING,
    "(" * 2**19 + ")" * 2**19: NOTHING,
    "x " * 2**19: NOTHING,
    "the a " * 2**17: NOTHING,
    "答案是" * 2**17: NOTHING,
    "有" * 2**20: (None, None, "yes"),
    "\u202e\u200f\x00\x1b" * 2**18: NOTHING,
    " " * 2**20 + "lung": ("lung", "lung", None),
    "\\boxed{" + "\\text{" * 2**16 + "lung" + "}" * 2**16 + "}": NOTHING,
    "\\boxed{" + "肺和" * 2**18 + "}": NOTHING,
}
"""Response -> what is read of it as an open, a sorted and a closed question."""


@pytest.mark.slow
@pytest.mark.parametrize("text", MEGABYTES, ids=lambda text: text[:12].encode("unicode_escape").decode())
def test_a_megabyte_is_read_in_linear_time(text: str) -> None:
    for spec, key in zip((OPEN, SORTED, CLOSED), MEGABYTES[text], strict=True):
        with linear(spec):
            answer = parse(text, spec)
            verdict = grade(answer, "lung", spec)
        assert (answer.key if answer else None, verdict.correct) == (key, key == "lung")
