"""Yes, no and maybe: whole words, the last commitment, and nothing where a response decides nothing."""

from __future__ import annotations

import pytest
from linear import linear

from mm_spine.processors.answers import grade, parse
from mm_spine.types import AnswerSpec

DECISION = AnswerSpec("yes_no_maybe")
LISTED = AnswerSpec("yes_no_maybe", ("yes", "no", "maybe"))
YES_NO = AnswerSpec("yes_no")


def found(response: str, spec: AnswerSpec) -> str | None:
    answer = parse(response, spec)
    return None if answer is None else answer.key


@pytest.mark.parametrize(
    ("response", "key"),
    [
        # PubMedQA's labels (pubmedqa.github.io), as models write them
        *(
            (form, "maybe")
            for form in ("maybe", "Maybe.", "**Maybe**", "_maybe_", r"\boxed{maybe}", "The answer is maybe")
        ),
        *((form, "no") for form in ("No", r"\boxed{\text{No}}", "Answer: No.", "Final answer:\nno", "<b>No</b>, x")),
        ("Maybe yes at first. The answer is no.", "no"),  # the last commitment
        ("The answer is yes. Wait, the answer is maybe.", "maybe"),
        ("Maybe, I first thought.\nThe study shows otherwise.\nNo.", "no"),
        (r"The answer is yes. \boxed{maybe}", "maybe"),
        (r"I will answer in \boxed{}. The answer is maybe.", "maybe"),  # an echo of the prompt
        ("Maybe it helps in some patients.", "maybe"),
        ("It may be so.", None),
        ("It may be so, or maybe not", "maybe"),
        ("uncertain", None),  # the label is the word, not what it may mean
        ("The answer is uncertain.", None),
        ("It cannot be determined.", None),
        ("yes, no or maybe?", None),  # the question repeated
        ("Answer with yes, no, or maybe", None),
        ("yes/no/maybe", None),
        ("the answer is yes or maybe", None),
        ("abnormal, I know", None),
        ("A", None),  # a letter without choices
        ("The answer is B.", None),
        ("", None),
    ],
)
def test_yes_no_maybe(response: str, key: str | None) -> None:
    assert found(response, DECISION) == key


@pytest.mark.parametrize(
    ("response", "key"),
    [("A", "yes"), (r"\boxed{B}", "no"), ("The answer is (C).", "maybe"), ("C. maybe", "maybe"), ("D", None)],
)
def test_a_letter_stands_for_its_choice(response: str, key: str | None) -> None:
    assert found(response, LISTED) == key


@pytest.mark.parametrize(
    ("response", "key"),
    [
        ("yes, it is abnormal", "yes"),  # the grading rules: whole words
        ("yes, I know", "yes"),
        ("cannot be determined", None),
        ("The answer cannot be determined.", None),
        (r"\boxed{\text{Yes}}", "yes"),
        (r"\boxed{\textbf{Yes.}}", "yes"),
        ("**No**", "no"),
        ("__No__", "no"),
        ("_No_", "no"),
        ("Answer: No.", "no"),
        ("True", None),  # MMStar and others: another kind's words
        ("False.", None),
        ("Yes, no abnormality is seen", "yes"),
        ("normal, as noted", None),  # LLaVA-Med's grader took these for no (its issue 12)
        ("The answer is not yes", None),
        ("The answer is not a clear no.", None),
        ("I have no doubt that it is one.", None),
        ("No conclusion can be drawn.", None),
        ("No definite evidence of a fracture.", "no"),
        ("Yes. I looked again.\nNo", "no"),
        ("Yes, there is one.\nNo effusion is seen.", "yes"),  # a finding
        ("\u200fyes\u200f", "yes"),
        ("maybe", None),
        ("A", None),
    ],
)
def test_yes_no_traps(response: str, key: str | None) -> None:
    assert found(response, YES_NO) == key


@pytest.mark.parametrize("word", ["yes", "no", "maybe"])
def test_the_name_of_a_class_reads_back_and_is_graded(word: str) -> None:
    for spec in (DECISION, LISTED):
        assert found(word, spec) == word
        assert grade(parse(word, spec), word.title(), spec).correct
        assert not grade(parse(word, spec), {"yes": "no", "no": "maybe", "maybe": "yes"}[word], spec).correct


def test_a_gold_that_is_no_decision_is_a_fault_of_the_data() -> None:
    with pytest.raises(ValueError, match="'perhaps'.*'yes_no_maybe'"):
        grade(None, "perhaps", DECISION)


MEGABYTES = {
    "no " * 2**18: ("no", "no", "no"),
    "not a " * 2**18 + "yes": (None, None, None),
    " " * 2**20 + "maybe": (None, "maybe", "maybe"),
    "\n\x00\u202e" * 2**18: (None, None, None),
    "\\boxed{" + "\\text{" * 2**16 + "yes" + "}" * 2**16 + "}": (None, None, None),
    "{" * 2**20: (None, None, None),
    "the answer is yes or " * 2**15: ("yes", "yes", "yes"),
}
"""Response -> what is read of it by each kind."""


@pytest.mark.slow
@pytest.mark.parametrize("text", MEGABYTES, ids=lambda text: text[:12].encode("unicode_escape").decode())
def test_a_megabyte_is_read_in_linear_time(text: str) -> None:
    for spec, key in zip((YES_NO, DECISION, LISTED), MEGABYTES[text], strict=True):
        with linear(spec):
            answer = parse(text, spec)
            verdict = grade(answer, "yes", spec)
        assert (answer.key if answer else None, verdict.correct) == (key, key == "yes")
