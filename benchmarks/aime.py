"""AIME 2024 and 2025: 30 competition problems a year. Each answer is an integer from 0 to 999."""

from __future__ import annotations

from mm_spine.benchmarks.benchmark import Entry, Images, Row, Source, golds
from mm_spine.benchmarks.release import ReleasedBenchmark
from mm_spine.types import AnswerSpec

# The kind is `math`, not `integer`, because a box may hold an expression that equals the integer. Both kinds take "025"
# and 25 as the same answer.
SPEC = AnswerSpec("math")
SOURCE_2024 = Source(
    hub="HuggingFaceH4/aime_2024",
    files={"test": ("data/train-*.parquet", "test.jsonl", "test.json", "rows.jsonl")},
    hub_splits={"test": "train"},
)
SOURCE_2025 = Source(hub="math-ai/aime25", files={"test": ("test.jsonl", "test.json", "rows.jsonl")})


def read(row: Row, images: Images, index: int) -> Entry:
    """Read a row of the hub (`problem`) or of TTRL's release (`prompt`). Golds such as "025" stay as released."""
    body = str(row["problem"] if "problem" in row else row["prompt"])
    return Entry(id=str(row["id"]), body=body, spec=SPEC, golds=golds(row.get("answer")))


def _benchmark(year: int, source: Source) -> ReleasedBenchmark:
    return ReleasedBenchmark(
        name=f"aime{year % 100}",
        source=source,
        read=read,
        kind=SPEC.kind,
        summary=f"The 30 problems of AIME I and II {year}, no images.",
        citation=f"Mathematical Association of America ({year}). American Invitational Mathematics Examination.",
        licence="not stated; the problems are the Mathematical Association of America's",
    )


BENCHMARK_2024 = _benchmark(2024, SOURCE_2024)
BENCHMARK_2025 = _benchmark(2025, SOURCE_2025)
