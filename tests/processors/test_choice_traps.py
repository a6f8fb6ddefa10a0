"""Letters of multiple choice: one row per trap, with the place where graders get it wrong as its id."""

from __future__ import annotations

import pytest

from mm_spine.processors.answers import grade, parse
from mm_spine.types import AnswerSpec

DRUGS = AnswerSpec("choice", ("aspirin", "ibuprofen", "vitamin D", "paracetamol"))
STEPS = AnswerSpec(
    "choice", ("Chest x-ray", "Needle thoracostomy", "Intubation and mechanical ventilation", "None of the above")
)
NESTED = AnswerSpec("choice", ("aspirin", "aspirin and clopidogrel", "clopidogrel"))
NUMBERS = AnswerSpec("choice", ("2", "12", "2.5", "-2"))
CHINESE = AnswerSpec("choice", ("增加", "减少", "不变", "不能确定"))
TEN = AnswerSpec("choice", tuple(f"option {number}" for number in range(10)))
TEXTS = AnswerSpec("choice", ("B", "C", "A"))
SIGHT = AnswerSpec("choice", ("visible", "not visible", "incorrect"))
ITEMS = AnswerSpec("choice", tuple(f"item {number} of the list" for number in range(14)))

# lmms-eval's and MMMU's `parse_multi_choice_response` know "(B)", "B " and "B."; else they draw a letter at random.
LMMS = "lmms-eval/MMMU: random letter"
RULE = "letters"
LAST = "last committed answer"
ELIMINATED = "a letter in an elimination"
ARTICLE = "the article a"
SEVERAL = "several letters"
BEYOND = "a letter beyond the options"
TEXT = "an option's own text"
CLOSING = "the last sentence of a chain of thought"
HAN = "GeoQA+ and SLAKE: Chinese"
WIDE = "full-width and invisible characters"
BOX = "boxes"
SIGNED = "a conclusion signed with a letter"
ENDED = "marks of the end of text"
OWN = "a letter and its own option's text"

Row = tuple[str, str, AnswerSpec, str | None]

ROWS: list[Row] = [
    *(
        (LMMS, form, DRUGS, "B")
        for form in (r"\boxed{B}", "**B**", "B)", r"\boxed{\text{(B)}}", r"\boxed{\textbf{B}}", r"$\boxed{B}$")
    ),
    (LMMS, "It could be anything.", DRUGS, None),
    (LMMS, "", DRUGS, None),
    *(
        (RULE, form, DRUGS, "B")
        for form in ("B", "(B)", "B.", "b", "(b)", "[B]", "Option B", "option (b)", "B: ibuprofen")
    ),
    *((RULE, form, DRUGS, "B") for form in ("the answer is B", "Answer: B. ibuprofen", "Answer: (B) ibuprofen")),
    *((RULE, form, DRUGS, "B") for form in ("**Answer:** B", "### Answer\nB", "Final answer: $B$", "**Answer: B**")),
    *((RULE, form, DRUGS, "B") for form in ("<answer>B</answer>", "<answer>\n(B) ibuprofen\n</answer>")),
    *((RULE, form, DRUGS, "B") for form in ("The correct answer is option (B).", "The correct option is **B**")),
    *(
        (RULE, form, DRUGS, "B")
        for form in ("I pick B", "I choose (B).", "I would go with B.", "My final choice is B.")
    ),
    *((RULE, form, DRUGS, "B") for form in ("So the answer is (B).\n\nI hope this helps! Let me know.",)),
    (RULE, "| Question | 1 |\n|---|---|\n| Answer | B |", DRUGS, "B"),
    (RULE, "| A | wrong |\n| B | correct |\n\nAnswer: B", DRUGS, "B"),
    (RULE, "J", TEN, "J"),
    (RULE, "The answer is (J).", TEN, "J"),
    (LAST, "The answer is A. Wait, that is too much, so the answer is C", DRUGS, "C"),
    (LAST, "The correct answer is **(C) vitamin D**.\n\nI checked it.\n\nSo the answer is (A).", DRUGS, "A"),
    (LAST, r"\boxed{A}. No, I was mistaken: \boxed{B}", DRUGS, "B"),
    (LAST, "Answer: A\n\nOn reflection, answer: D", DRUGS, "D"),
    (ELIMINATED, "I would choose B because A is wrong", DRUGS, "B"),
    (ELIMINATED, "The answer is B, since A is wrong and C is incorrect.", DRUGS, "B"),
    (ELIMINATED, "because A is wrong", DRUGS, None),
    (ELIMINATED, "A is wrong. C cannot be right. D is ruled out.", DRUGS, None),
    (ELIMINATED, "The answer is not A.", DRUGS, None),
    (ELIMINATED, "I would not choose B.", DRUGS, None),
    (ELIMINATED, "The answer isn't B.", DRUGS, None),
    (ELIMINATED, "Option A is incorrect.", DRUGS, None),
    (ARTICLE, "A patient with fever is seen.", DRUGS, None),
    (ARTICLE, "The answer is a tumour.", DRUGS, None),
    (ARTICLE, "The answer is a tumour.", AnswerSpec("choice", ("cyst", "tumour")), "B"),
    (ARTICLE, "the answer is a vitamin D tablet", DRUGS, "C"),
    (ARTICLE, "So a drug is needed.", DRUGS, None),
    *((SEVERAL, form, DRUGS, None) for form in ("B and C", "A, B", "(A) and (B)", "A/B", "The answer is B and C.")),
    *((SEVERAL, form, DRUGS, None) for form in (r"\boxed{A, B}", r"\boxed{\text{B and C}}", r"\boxed{BC}", "A or B")),
    (SEVERAL, "The answer is A. No: the answer is B and C.", DRUGS, None),
    *((BEYOND, form, DRUGS, None) for form in ("E", "(E)", "The answer is F.", r"\boxed{J}", "K")),
    *(
        (TEXT, form, DRUGS, "B")
        for form in ("ibuprofen", "Ibuprofen.", r"\boxed{\text{Ibuprofen}}", r"\boxed{B. ibuprofen}")
    ),
    (TEXT, r"\boxed{B} which is ibuprofen, not \textit{aspirin}.", DRUGS, "B"),
    (TEXT, "The answer is none of the above.", STEPS, "D"),
    (TEXT, r"\boxed{None of the above}", STEPS, "D"),
    (TEXT, "The answer is aspirin.", NESTED, "A"),
    (TEXT, "The answer is aspirin and clopidogrel.", NESTED, "B"),
    (TEXT, r"\boxed{aspirin and clopidogrel}", NESTED, "B"),
    (TEXT, "The answer is aspirin and heparin.", NESTED, None),
    (TEXT, "The answer is aspirin and it must be given at once.", NESTED, "A"),
    (TEXT, r"\boxed{aspirin or clopidogrel}", NESTED, None),
    *((TEXT, f"The answer is {text}.", NUMBERS, label) for text, label in zip(NUMBERS.choices, "ABCD", strict=True)),
    *((TEXT, f"\\boxed{{{text}}}", NUMBERS, label) for text, label in zip(NUMBERS.choices, "ABCD", strict=True)),
    *((TEXT, text, NUMBERS, None) for text in ("The answer is 122.", "The answer is 2.57.", "The answer is 0.2", "22")),
    (CLOSING, "The lung has collapsed. Therefore, the most appropriate next step is needle thoracostomy.", STEPS, "B"),
    (CLOSING, "A chest x-ray would take time.\n\nThus, we should perform needle thoracostomy.", STEPS, "B"),
    (CLOSING, "Needle thoracostomy is the most appropriate next step.", STEPS, "B"),
    (CLOSING, "So it is needle thoracostomy, not a chest x-ray.", STEPS, "B"),
    (CLOSING, "Therefore, the next step is not needle thoracostomy.", STEPS, None),
    (CLOSING, "The next step is needle thoracostomy or a chest x-ray.", STEPS, None),
    (CLOSING, "Therefore, needle thoracostomy is contraindicated.", STEPS, None),
    (CLOSING, "The most appropriate step is clear. Needle thoracostomy was invented long ago.", STEPS, None),
    (CLOSING, "Thus the best treatment is aspirin and clopidogrel.", NESTED, "B"),
    (CLOSING, "Thus the best treatment is clopidogrel rather than aspirin.", NESTED, None),
    (CLOSING, "Therefore, the value is 12.", NUMBERS, "B"),
    (CLOSING, "Therefore, the value is 0.12.", NUMBERS, None),
    (CLOSING, "No, Web Green does not have the minimum area.", AnswerSpec("choice", ("yes", "no")), "B"),
    (CLOSING, "There is no evidence of yes or of anything.", AnswerSpec("choice", ("yes", "no")), None),
    *(
        (HAN, form, CHINESE, "B")
        for form in ("答案是B", "选B", "答案：（B）", "故选：B", "因此，答案为B。", "所以应选（B）", "B")
    ),
    *(
        (HAN, form, CHINESE, "B")
        for form in ("正确答案是选项B。", "B选项正确。", "∠BOC = 110°\n\n答案为B", "答案是减少。", "减少")
    ),
    *((HAN, form, CHINESE, None) for form in ("答案不是B", "不选B", "B是错误的", "B不正确", "排除B")),
    (HAN, "答案是A。不对，答案是C。", CHINESE, "C"),
    *(
        (WIDE, form, DRUGS, "B")
        for form in ("Ｂ", "（Ｂ）", "答案：Ｂ", "\u200fB\u200e", "\ufeff(B)", "The answer is\u00a0B.")
    ),
    *((BOX, form, DRUGS, None) for form in (r"\boxed{}", r"\boxed{ }", r"\boxed{42}", r"\boxed{B")),
    (BOX, "I shall put the letter in \\boxed{}.\nThe answer is B.", DRUGS, "B"),
    (BOX, r"\boxed{B} is right. The answer is A only for children.", DRUGS, "B"),
    (BOX, r"That is \boxed{40} mg. The answer is (B).", DRUGS, "B"),
    (BOX, r"The answer is (B), that is \boxed{40} mg.", DRUGS, None),
    (BOX, r"\boxed{40} mg, so (B) is wrong.", DRUGS, None),
    (SIGNED, "So the drug is Brufen. (B)\n\n* (A) Aspirin. This would be the answer for a child.", DRUGS, "B"),
    (SIGNED, "Hence it is one that spares the stomach (D).\n\nI hope this helps!", DRUGS, "D"),
    *(
        (SIGNED, form, DRUGS, None)
        for form in (
            "Therefore we can rule out (C).",
            "So compare (A) and (C).",
            "So it is not (A).",
            "Thus (B) or (C)",
        )
    ),
    (CLOSING, "If the fever is high, then the drug of choice is (B) ibuprofen.", DRUGS, "B"),
    (CLOSING, "We should take the one labelled (B), as it helps.", DRUGS, "B"),
    (CLOSING, "It was not the one labelled (B), as it seems.", DRUGS, None),
    (CLOSING, "The drug most missed if insulin was eliminated would be the ibuprofen.", DRUGS, "B"),
    (CLOSING, "The drug that was eliminated is ibuprofen.", DRUGS, None),
    (ELIMINATED, "So (B) is wrong.", DRUGS, None),
    (CLOSING, "A: No, it is not the largest. It is the third.", AnswerSpec("choice", ("yes", "no")), "B"),
    (CLOSING, "A: yes\nB: no", AnswerSpec("choice", ("yes", "no")), None),
    (ENDED, "It is (B) ibuprofen.</s>", DRUGS, "B"),
    (ENDED, "B<|im_end|>\n", DRUGS, "B"),
    (BOX, r"\(\boxed{\mathrm{B}}\)", DRUGS, "B"),
    (BOX, r"\boxed{\text{B) ibuprofen}}", DRUGS, "B"),
    (BOX, r"\boxed{\text{Option B}}", DRUGS, "B"),
    (BOX, r"\boxed{\text{The answer is B}}", DRUGS, "B"),
    *(
        (OWN, form, CHINESE, "C")
        for form in ("The value is **(C) 不变**. I hope this helps!", "结果是 (C) 不变。", "是(C)不变")
    ),
    *((OWN, form, CHINESE, "C") for form in ("C不变", "C、不变", "**C** 不变", "(C) 不变 I hope this helps!")),
    (OWN, "Therefore, the fracture is (B) not visible.", SIGHT, "B"),
    (OWN, "Therefore, the claim is (C) incorrect.", SIGHT, "C"),
    (OWN, "The fracture is not (A) visible.", SIGHT, None),
    (OWN, "The value is not (C) 不变.", CHINESE, None),
    *(
        (OWN, form + "item 4 of the list", ITEMS, "E")
        for form in ("E ", "Answer: E ", "Answer: \\( \\text{E} \\) ", "Answer: ")
    ),
    (OWN, "Answer: E item 4 of the list Feel free to ask for more help.", ITEMS, "E"),
    # Letter and text disagree, or the article stands before another option's text.
    (OWN, "A item 4 of the list", ITEMS, None),
    (OWN, "The answer is D item 3 of the list and E item 4 of the list", ITEMS, None),
]


@pytest.mark.parametrize(
    ("response", "spec", "letter"), [pytest.param(*row[1:], id=f"{row[0]}: {row[1][:40]}") for row in ROWS]
)
def test_the_letter_that_a_response_commits_to(response: str, spec: AnswerSpec, letter: str | None) -> None:
    answer = parse(response, spec)
    assert (answer.key if answer else None) == letter
    long = parse("It is a long story, told once more and then again. " * 20 + "\n" + response, spec)
    if letter is not None and not response.startswith(("No, ", "A chest", "The lung")):
        assert long == answer


def test_a_bare_letter_is_a_label_where_options_are_letters() -> None:
    assert [getattr(parse(letter, TEXTS), "key", None) for letter in "ABC"] == ["A", "B", "C"]
    assert grade(parse("The answer is C", TEXTS), "C", TEXTS).correct
