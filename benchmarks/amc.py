"""AMC 12 of 2022 and 2023. Each answer is an integer; the options of the contest are left out."""

from __future__ import annotations

from mm_spine.benchmarks.benchmark import Entry, Images, Row, Source, golds
from mm_spine.benchmarks.release import ReleasedBenchmark
from mm_spine.types import AnswerSpec

SOURCE = Source(
    hub="AI-MO/aimo-validation-amc",
    files={"test": ("data/train-*.parquet", "test.jsonl", "test.json", "rows.jsonl")},
    hub_splits={"test": "train"},
)


def read(row: Row, images: Images, index: int) -> Entry:
    """Read a row of the hub (`problem`) or of TTRL's release (`prompt`)."""
    return Entry(
        id=str(row["id"]),
        body=str(row["problem"] if "problem" in row else row["prompt"]),
        spec=AnswerSpec("math"),
        # The integers were released as floats: 265.0.
        golds=tuple(gold.removesuffix(".0") for gold in golds(row.get("answer"))),
    )


BENCHMARK = ReleasedBenchmark(
    name="amc",
    source=SOURCE,
    read=read,
    kind="math",
    summary="83 problems of AMC 12, 2022 and 2023, no images.",
    citation="AI-MO (2024). AIMO validation set: AMC. Problems of the Mathematical Association of America.",
    licence="Apache-2.0 (as stated on the hub); the problems are the Mathematical Association of America's",
)
