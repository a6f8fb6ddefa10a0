"""MATH-Vision: competition problems with a figure, answered by a letter or a mathematical value.

One picture holds all figures of a problem, even where its text names `<image1>`, `<image2>` and so on. Options may be
letters themselves (the options A, B, D, F, G under the labels A-E), or only be drawn in the picture.
"""

from __future__ import annotations

from mm_spine.benchmarks.benchmark import Entry, Images, Row, Source, golds
from mm_spine.benchmarks.prompts import place_images
from mm_spine.benchmarks.release import ReleasedBenchmark
from mm_spine.types import AnswerSpec

SOURCE = Source(
    hub="MathLLMs/MathVision",
    files={
        "test": ("data/test-*.parquet", "test.jsonl", "test.parquet", "data/test.jsonl"),
        "testmini": ("data/testmini-*.parquet", "testmini.jsonl", "testmini.parquet", "data/testmini.jsonl"),
    },
)


def read(row: Row, images: Images, index: int) -> Entry:
    """Read a row of the hub (`decoded_image`) or of the release's JSONL (`image`, a path)."""
    decoded = row.get("decoded_image")
    return Entry(
        id=str(row["id"]),
        body=place_images(str(row["question"]), 1),
        spec=AnswerSpec("math_or_choice", tuple(str(option) for option in row["options"] or ())),
        golds=golds(row.get("answer")),
        images=(images(row["image"] if decoded is None else decoded),),
        tags={name: str(row[name]) for name in ("level", "subject") if row.get(name) is not None},
    )


BENCHMARK = ReleasedBenchmark(
    name="mathvision",
    source=SOURCE,
    read=read,
    kind="math_or_choice",
    summary="3,040 competition problems with figures: a letter or a mathematical value.",
    citation="K. Wang et al. (2024). Measuring Multimodal Mathematical Reasoning with MATH-Vision Dataset. "
    "arXiv 2402.14804.",
    licence="MIT",
    metric="accuracy: overall, by level and subject",
    breakdowns=("level", "subject"),
)
