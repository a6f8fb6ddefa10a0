"""MATH-500: competition problems. Each answer is a mathematical value."""

from __future__ import annotations

from mm_spine.benchmarks.benchmark import Entry, Images, Row, Source, golds
from mm_spine.benchmarks.release import ReleasedBenchmark
from mm_spine.types import AnswerSpec

SOURCE = Source(
    hub="HuggingFaceH4/MATH-500",
    files={"test": ("test.jsonl", "test.json", "rows.jsonl")},
)


def read(row: Row, images: Images, index: int) -> Entry:
    """Read a row of the hub (`problem`, `unique_id`) or of TTRL's release (`prompt`, `id`: the same ids; no tags)."""
    return Entry(
        id=str(row["unique_id"] if "unique_id" in row else row["id"]),
        body=str(row["problem"] if "problem" in row else row["prompt"]),
        spec=AnswerSpec("math"),
        golds=golds(row.get("answer")),
        tags={name: str(row[name]) for name in ("subject", "level") if row.get(name) is not None},
    )


BENCHMARK = ReleasedBenchmark(
    name="math500",
    source=SOURCE,
    read=read,
    kind="math",
    summary="500 competition problems of the MATH test set, no images.",
    citation="D. Hendrycks et al. (2021). Measuring Mathematical Problem Solving With the MATH Dataset. "
    "arXiv 2103.03874. The 500 are those of H. Lightman et al. (2023). Let's Verify Step by Step. arXiv 2305.20050.",
    licence="MIT (MATH)",
    breakdowns=("subject", "level"),
)
