"""MMMU: college exams in 30 subjects of six disciplines, with one to seven images, options or an open answer.

`options` is a Python list written as text; so may be the gold of an open question, which then lists all right answers.
Open answers are compared as text. "<image 2>" in a question or an option means the field `image_2`. Only the id tells
the subject ("validation_Accounting_1"). The answers of `test` are withheld ("?"). The official repository has a folder
for each subject; the copy on the hub that is read by default has one folder.
"""

from __future__ import annotations

import ast
import re
from typing import Any

from mm_spine.benchmarks.benchmark import Entry, Images, Row, Source
from mm_spine.benchmarks.prompts import place_images
from mm_spine.benchmarks.release import ReleasedBenchmark
from mm_spine.types import AnswerSpec

SOURCE = Source(
    hub="lmms-lab-encoder/MMMU",
    files={
        split: (f"data/{split}-*.parquet", f"*/{split}-*.parquet", f"{split}-*.parquet", f"{split}.jsonl")
        for split in ("validation", "dev", "test")
    },
)

DISCIPLINES = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        "Basic_Medical_Science",
        "Clinical_Medicine",
        "Diagnostics_and_Laboratory_Medicine",
        "Pharmacy",
        "Public_Health",
    ),
    "Humanities and Social Science": ("History", "Literature", "Psychology", "Sociology"),
    "Tech and Engineering": (
        "Agriculture",
        "Architecture_and_Engineering",
        "Computer_Science",
        "Electronics",
        "Energy_and_Power",
        "Materials",
        "Mechanical_Engineering",
    ),
}
_DISCIPLINE_OF = {subject: discipline for discipline, subjects in DISCIPLINES.items() for subject in subjects}
_MARKER = re.compile(r"<image ([1-7])>")
_NUMBER = re.compile(r"-?[0-9][0-9,]{0,20}(?:\.[0-9]{1,20})?")
# Characters of a list written as text. The longest of the release has about a tenth of this.
_LITERAL_LIMIT = 20_000


def read(row: Row, images: Images, index: int) -> Entry:
    """Read a row. Raises ValueError where `options` is no list of texts, or the text names an image that is missing."""
    numbers = [k for k in range(1, 8) if row.get(f"image_{k}") is not None]
    choices = tuple(_marked(option, numbers) for option in _texts(row["options"]))
    open_ended = row["question_type"] == "open"
    return Entry(
        id=str(row["id"]),
        body=place_images(_marked(str(row["question"]), numbers), len(numbers), " ".join(choices)),
        spec=AnswerSpec("text") if open_ended else AnswerSpec("choice", choices),
        golds=_golds(row.get("answer"), open_ended),
        images=tuple(images(row[f"image_{k}"]) for k in numbers),
        tags=_tags(row),
    )


def _marked(text: str, numbers: list[int]) -> str:
    """Write "<image 2>" as "<imageK>" for the K-th image of the row; `numbers` are the fields that hold one.

    Raises ValueError where the text names an image that is missing.
    """

    def marker(found: re.Match[str]) -> str:
        if int(found[1]) not in numbers:
            raise ValueError(f"the text names image {found[1]}; the row has images {numbers}")
        return f"<image{numbers.index(int(found[1])) + 1}>"

    return _MARKER.sub(marker, text)


def _texts(value: Any) -> tuple[str, ...]:
    """Return a list of texts that may be written as a Python list."""
    if isinstance(value, str):
        if len(value) > _LITERAL_LIMIT:
            raise ValueError(f"a list of more than {_LITERAL_LIMIT} characters")
        try:
            value = ast.literal_eval(value or "[]")
        except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
            raise ValueError(f"not a list written as text: {value[:60]!r}") from error
    if not isinstance(value, list | tuple):
        raise ValueError(f"expected a list of texts, found {type(value).__name__}")
    return tuple(str(text) for text in value)


def _golds(answer: Any, open_ended: bool) -> tuple[str, ...]:
    if answer in (None, "", "?"):
        return ()
    if not open_ended:
        return (str(answer),)
    listed = not isinstance(answer, str) or re.fullmatch(r"\s*\[.*\]\s*", answer, re.DOTALL)
    golds = [gold.strip() for gold in (_texts(answer) if listed else (answer,))]
    return tuple(dict.fromkeys(form for gold in golds for form in (gold, *_forms(gold))))


def _forms(gold: str) -> tuple[str, ...]:
    """Return the ways to write a gold number that count as equal to it."""
    # The official grading (MMMU-Benchmark/MMMU, eval_utils.py, normalize_str) drops commas and rounds to two decimals.
    if not _NUMBER.fullmatch(gold):
        return ()
    value = round(float(gold.replace(",", "")), 2)
    places = range(3) if value == int(value) else range(1 if value == round(value, 1) else 2, 3)
    return tuple(f"{value:{separator}.{digits}f}" for digits in places for separator in ("", ","))


def _tags(row: Row) -> dict[str, str]:
    subject = re.sub(r"^[a-z]+_|_\d+$", "", str(row["id"]))
    tags = {
        "subject": subject,
        "discipline": _DISCIPLINE_OF.get(subject),
        "question_type": row["question_type"],
        "difficulty": row.get("topic_difficulty"),
    }
    return {name: str(value) for name, value in tags.items() if value}


BENCHMARK = ReleasedBenchmark(
    name="mmmu",
    source=SOURCE,
    read=read,
    kind="choice",
    summary="900 college exam questions (validation) in 30 subjects: 847 with options, 53 open; several images.",
    citation="X. Yue et al. (2023). MMMU: A Massive Multi-discipline Multimodal Understanding and Reasoning Benchmark "
    "for Expert AGI. arXiv 2311.16502.",
    licence="Apache 2.0",
    metric="accuracy over all questions, by discipline and subject",
    breakdowns=("discipline", "subject", "question_type", "difficulty"),
    adapt_split="validation",
)
