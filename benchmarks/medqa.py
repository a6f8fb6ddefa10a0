"""MedQA: questions in the style of the US medical licensing exam, with four options."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from mm_spine.benchmarks.benchmark import Entry, Images, Row, Source, golds
from mm_spine.benchmarks.release import ReleasedBenchmark
from mm_spine.processors.answers.choice import LABELS
from mm_spine.types import AnswerSpec

SOURCE = Source(
    hub="GBaker/MedQA-USMLE-4-options",
    files={
        "test": (
            "phrases_no_exclude_test.jsonl",
            "questions/US/4_options/phrases_no_exclude_test.jsonl",
            "data_clean/questions/US/4_options/phrases_no_exclude_test.jsonl",
            "test.jsonl",
            "rows.jsonl",
        ),
    },
)

_MARK = re.compile(r"(?<!\S)\(([A-J])\)(?!\S)")


class InlineChoices(NamedTuple):
    """A question and the options that were listed in it.

    `certain` is false where some "(A)" in the text of an option may be taken for the mark of an option.
    """

    body: str
    choices: tuple[str, ...]
    certain: bool


def inline_choices(question: str, count: int = len(LABELS)) -> InlineChoices:
    """Split "... Answer Choices: (A) one (B) two", as MedXpertQA's release writes it, into at most `count` options.

    A mark is a letter in parentheses between spaces. Marks are taken in the order A, B, C and so on. Where a letter
    appears more than once, the mark is uncertain, and the body is the question as released. Raises ValueError where
    the question lists no options.
    """
    body, _, listed = question.rpartition("Answer Choices:")
    marks = list(_MARK.finditer(listed))
    chain: list[re.Match[str]] = []
    for mark in marks:
        if len(chain) < count and mark[1] == LABELS[len(chain)]:
            chain.append(mark)
    if not body or len(chain) < 2:
        raise ValueError("no options: neither a field with them nor 'Answer Choices: (A) ... (B) ...' in the question")
    ends = [mark.start() for mark in chain[1:]] + [len(listed)]
    choices = tuple(listed[mark.end() : end].strip() for mark, end in zip(chain, ends, strict=True))
    certain = len(chain) == len(marks)
    return InlineChoices(body.strip() if certain else question, choices, certain)


def choice_entry(id: str, row: Row, label: Any, tags: Mapping[str, str], options: Any = None) -> Entry:
    """Make an entry with four options: `options`, or those listed in the question. `label` is the gold letter.

    Raises ValueError where there are no options.
    """
    question = str(row["question"])
    given = tuple(str(option).strip() for option in options) if options is not None else ()
    inline = InlineChoices(question, given, True) if given else inline_choices(question, count=4)
    spec = AnswerSpec("choice", inline.choices)
    return Entry(id, inline.body, spec, golds(label), tags=tags, lists_options=not inline.certain)


def read(row: Row, images: Images, index: int) -> Entry:
    """Read a row of the hub or the original (`options`, `answer_idx`), or of MedXpertQA's copy (inline, `label`)."""
    id = str(row.get("id") or f"medqa/test/{index:05d}")
    tags = {"step": str(row["meta_info"])} if row.get("meta_info") else {}
    if row.get("options") is None:
        return choice_entry(id, row, next(iter(row.get("label") or ()), None), tags)
    options = [text for _, text in sorted(row["options"].items()) if text is not None]
    return choice_entry(id, row, row.get("answer_idx"), tags, options)


BENCHMARK = ReleasedBenchmark(
    name="medqa",
    source=SOURCE,
    read=read,
    kind="choice",
    summary="1,273 questions of the US medical licensing exam with four options, no images.",
    citation="D. Jin et al. (2020). What Disease does this Patient Have? A Large-scale Open Domain Question Answering "
    "Dataset from Medical Exams. arXiv 2009.13081.",
    licence="CC BY 4.0 (as stated on the hub)",
    breakdowns=("step",),
)
