"""MathVista: mathematical reasoning in pictures, answered by an option, a number of given precision, or a list.

`query` is the question as the release asks it: a hint about the form of the answer, the question, the options. The
original `testmini.json` has no `query`, so one is written here from the same fields. The gold of a question with
options is the option's text. The answers of `test` are withheld.
"""

from __future__ import annotations

from typing import Any

from mm_spine.benchmarks.benchmark import Entry, Images, Row, Source, golds
from mm_spine.benchmarks.prompts import place_images
from mm_spine.benchmarks.release import ReleasedBenchmark
from mm_spine.types import AnswerSpec

SOURCE = Source(
    hub="AI4Math/MathVista",
    files={
        "testmini": ("data/testmini-*.parquet", "testmini.json", "data/testmini.json", "testmini.jsonl", "rows.jsonl"),
        "test": ("data/test-*.parquet", "test.json", "data/test.json", "test.jsonl"),
    },
    images=(".", "images", "images.zip", "data", "data/images.zip"),
)

SKILLS = (
    "algebraic reasoning",
    "arithmetic reasoning",
    "geometry reasoning",
    "logical reasoning",
    "numeric commonsense",
    "scientific reasoning",
    "statistical reasoning",
)
"""Skills that a question may need. Each is a tag, with the value "yes" where the question needs it."""


def read(row: Row, images: Images, index: int) -> Entry:
    """Read a row of the hub (`decoded_image`, `query`) or of the original (`image`, a path; no `query`)."""
    decoded, query = row.get("decoded_image"), str(row.get("query") or "")
    choices = tuple(str(choice) for choice in row.get("choices") or ())
    precision = row.get("precision")
    return Entry(
        id=str(row["pid"] if "pid" in row else row["id"]),
        body=place_images(query or _query(row), 1),
        spec=AnswerSpec(
            "typed",
            choices,
            precision=None if precision in (None, "") else int(float(precision)),
            unit=str(row["unit"]) if row.get("unit") else None,
            value_type=str(row["answer_type"]),
        ),
        golds=golds(row.get("answer")),
        images=(images(row["image"] if decoded is None else decoded),),
        tags=_tags(row),
        lists_options="Choices:" in query,
    )


def _query(row: Row) -> str:
    unit = f" (Unit: {row['unit']})" if row.get("unit") else ""
    hint = {
        "integer": "The answer is an integer.",
        "float": f"The answer is a number with {int(float(row.get('precision') or 1))} decimal place(s).",
        "list": "The answer is a list, such as [1, 2, 3] or [1.2, 1.3, 1.4].",
    }
    asked = "" if row.get("choices") else hint.get(str(row["answer_type"]), "")
    return f"{row['question']}{unit}\n{asked}".strip()


def _tags(row: Row) -> dict[str, str]:
    metadata: dict[str, Any] = row.get("metadata") or {}
    values = {"question_type": row["question_type"], "answer_type": row["answer_type"]}
    values |= {name: metadata.get(name) for name in ("task", "context", "category", "grade")}
    needed = {skill: "yes" for skill in metadata.get("skills") or () if skill in SKILLS}
    return {name: str(value) for name, value in values.items() if value} | needed


BENCHMARK = ReleasedBenchmark(
    name="mathvista",
    source=SOURCE,
    read=read,
    kind="typed",
    summary="1,000 questions (testmini) on charts, geometry, tables and photographs: options, numbers and lists.",
    citation="P. Lu et al. (2023). MathVista: Evaluating Mathematical Reasoning of Foundation Models in Visual "
    "Contexts. arXiv 2310.02255.",
    licence="CC BY-SA 4.0",
    metric="accuracy: overall, by task and by skill",
    breakdowns=("task", *SKILLS, "question_type", "answer_type", "context", "category", "grade"),
    adapt_split="testmini",
)
