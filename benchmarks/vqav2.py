"""VQAv2: everyday questions about photographs, each answered by ten people.

All ten answers are golds, and the score is how many of them agree with the response. Their spelling stays as released,
because the official measure normalises it only where the ten differ. The answers of `testdev` and `test` are withheld.
The original release has questions and answers in two files; the hub's rows hold both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mm_spine.benchmarks.benchmark import Entry, Images, Row, Source
from mm_spine.benchmarks.prompts import place_images
from mm_spine.benchmarks.release import ReleasedBenchmark
from mm_spine.types import AnswerSpec

SOURCE = Source(
    hub="lmms-lab-encoder/VQAv2",
    files={
        split: (f"data/{split}-*.parquet", f"{split}-*.parquet", f"{split}.jsonl")
        for split in ("validation", "testdev", "test")
    },
)


def read(row: Row, images: Images, index: int) -> Entry:
    """Read a row of the hub."""
    answer_type = row.get("answer_type")
    return Entry(
        id=str(row["question_id"]),
        body=place_images(str(row["question"]).strip(), 1),
        spec=AnswerSpec("vqa"),
        golds=_golds(row.get("answers")),
        images=(images(row["image"]),),
        tags={"answer_type": str(answer_type)} if answer_type else {},
    )


def _golds(answers: Any) -> tuple[str, ...]:
    """Return the answers of a list of objects or strings, or of an object of lists (from the `datasets` library)."""
    if isinstance(answers, Mapping):
        answers = answers["answer"]
    return tuple(str(answer["answer"] if isinstance(answer, Mapping) else answer) for answer in answers or ())


BENCHMARK = ReleasedBenchmark(
    name="vqav2",
    source=SOURCE,
    read=read,
    kind="vqa",
    summary="214,354 everyday questions about photographs (validation), ten human answers each.",
    citation="Y. Goyal et al. (2017). Making the V in VQA Matter: Elevating the Role of Image Understanding in Visual "
    "Question Answering. arXiv 1612.00837.",
    licence="CC BY 4.0 (questions and answers); the images are those of COCO",
    metric="VQA accuracy: overall, yes/no, number and other",
    breakdowns=("answer_type",),
    adapt_split="validation",
)
