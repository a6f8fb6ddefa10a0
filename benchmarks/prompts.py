"""Write the prompt of an entry: `reason` asks for reasoning and a boxed answer, `short` for the answer only.

`verbatim` asks for nothing beside the question and its options.
"""

from __future__ import annotations

import re

from mm_spine.benchmarks.benchmark import Entry
from mm_spine.processors.answers.choice import LABELS
from mm_spine.processors.answers.medical import CLOSED
from mm_spine.processors.markers import places

STYLES = ("reason", "short", "verbatim")

_REASON = "Think step by step, then give {what} in \\boxed{{}}."
_WHAT = {
    "choice": "the letter of the right option",
    "math_or_choice": "the final answer",
    "math": "the final answer",
    "typed": "the final answer",
    "integer": "the final answer",
    "box": "the box as [x1, y1, x2, y2]",
    "yes_no": "yes or no",
    "yes_no_maybe": "yes, no or maybe",
}
_SHORT = {
    "choice": "Answer with the letter of the right option alone.",
    "math_or_choice": "Answer with the final result alone.",
    "math": "Answer with the final result alone.",
    "typed": "Answer with the final result alone.",
    "integer": "Answer with the number alone.",
    "box": "Answer with the box [x1, y1, x2, y2] alone.",
    "yes_no": "Answer with yes or no alone.",
    "yes_no_maybe": "Answer with yes, no or maybe alone.",
}
_SHORT_DEFAULT = "Answer with a single word or phrase."

_LETTERED = ("choice", "math_or_choice", "typed")
"""Kinds whose options are shown with letters, and answered by letter."""

_AUXILIARY = re.compile(
    r"(?:(?:in|on|from|within|based on) (?:this|the|these)[^,?]*,\s*)?"
    r"(?:is/are|are/is|(?:is|are|was|were|do|does|did|can|could|has|have|had|will|would|should)(?:n['’]t)?)\s",
    re.IGNORECASE,
)
_ALTERNATIVE = re.compile(r"\bor\b(?!\s+not\b)", re.IGNORECASE)
_EXISTENCE = re.compile(r"\b(?:any|evidence|sign|signs)\b|(?:^|,\s*)(?:is/are|are/is|is|are)\s+there\b", re.IGNORECASE)
_CHINESE_YES_NO = re.compile(r"吗|是否|有没有|是不是|能不能|有无|存不存在|正不正常")


def render(entry: Entry, style: str) -> str:
    """Return the prompt of `entry`: its body, its options unless the body lists them, and the form of the answer.

    Raises ValueError where `style` is not one of `STYLES`.
    """
    if style not in STYLES:
        raise ValueError(f"prompt={style!r}: there is no such style; take one of {', '.join(STYLES)}")
    kind = _form(entry.spec.kind, entry.spec.choices)
    if style == "reason":
        request = _REASON.format(what=_WHAT.get(kind, "a short final answer"))
    else:
        request = "" if style == "verbatim" else _SHORT.get(kind, _SHORT_DEFAULT)
    listed = entry.spec.kind in _LETTERED and not entry.lists_options
    parts = [entry.body.strip(), options(entry.spec.choices) if listed else "", request]
    return "\n".join(part for part in parts if part)


def options(choices: tuple[str, ...]) -> str:
    """List the options, one "(A) text" on each line."""
    return "\n".join(f"({label}) {choice}" for label, choice in zip(LABELS, choices, strict=False))


def place_images(body: str, count: int, elsewhere: str = "") -> str:
    """Put a marker `<imageK>` before `body` for each of its `count` images that it does not mark itself.

    Images that `elsewhere` marks, such as the options, need none either.
    """
    marked = {place.image for place in places(body + elsewhere, count)}
    return "\n".join([*(f"<image{k}>" for k in range(1, count + 1) if k not in marked), body])


def asks_yes_no(question: str) -> bool:
    """Say whether a question, English or Chinese, asks for yes or no. Its answer is never looked at.

    An English question does if it opens with a verb such as "is" or "does" and offers no alternatives. "Is this a CT
    or an MRI?" asks for one of two; "Is there any fluid or air?" and "Is it enlarged or not?" ask for yes or no.
    """
    question = question.strip()
    if _CHINESE_YES_NO.search(question):
        # "还是" is the "or" of alternatives.
        return "还是" not in question
    if not _AUXILIARY.match(question):
        return False
    return not _ALTERNATIVE.search(question) or _EXISTENCE.search(question) is not None


def _form(kind: str, choices: tuple[str, ...]) -> str:
    """Return the kind by whose words the answer is requested: a letter where options are listed, for example."""
    if kind == "medical" and choices == CLOSED:
        return "yes_no"
    return "choice" if choices and kind in _LETTERED else kind
