"""PathVQA: questions about pathology images, answered by yes, no or a short phrase.

The questions were made from captions by a program and are in lower case. The hub gives only image, question and answer.
A question is closed if its words ask for yes or no (`asks_yes_no`); its answer is never looked at. The original release
keeps its rows in pickle files, which are not read because loading a pickle runs code.
"""

from __future__ import annotations

from mm_spine.benchmarks.benchmark import Entry, Images, Row, Source
from mm_spine.benchmarks.release import ReleasedBenchmark
from mm_spine.benchmarks.vqa_rad import medical_entry

SOURCE = Source(
    hub="flaviagiammarino/path-vqa",
    files={
        "test": ("data/test-*.parquet", "test-*.parquet", "test.jsonl", "rows.jsonl"),
        "validation": ("data/validation-*.parquet", "validation-*.parquet", "validation.jsonl"),
    },
)


def read(row: Row, images: Images, index: int) -> Entry:
    """Read a row of the hub, or of JSON lines with the same fields."""
    return medical_entry(str(row.get("id") or f"path_vqa/{index:05d}"), row, images(row["image"]))


BENCHMARK = ReleasedBenchmark(
    name="path_vqa",
    source=SOURCE,
    read=read,
    kind="medical",
    summary="6,719 questions about pathology images: yes, no or a short phrase.",
    citation="X. He et al. (2020). PathVQA: 30000+ Questions for Medical Visual Question Answering. arXiv 2003.10286.",
    licence="MIT as stated on the hub; the images belong to their textbooks and library",
    metric="accuracy: open, closed and overall",
    breakdowns=("answer_type",),
)
