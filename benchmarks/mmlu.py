"""MMLU: questions from 57 subjects, with four options."""

from __future__ import annotations

from mm_spine.benchmarks.benchmark import Entry, Images, Row, Source, letter
from mm_spine.benchmarks.medqa import choice_entry
from mm_spine.benchmarks.release import ReleasedBenchmark

SOURCE = Source(
    hub="cais/mmlu",
    config="all",
    files={"test": ("test-*.parquet", "test.parquet", "test.jsonl", "rows.jsonl")},
)


def read(row: Row, images: Images, index: int) -> Entry:
    """Read a row of the hub (`choices`, `answer` counted from 0) or of MedXpertQA's copy (inline options, `label`).

    Neither has ids, so an id is made of the row's index.
    """
    id, tags = f"mmlu/test/{index:05d}", {"subject": str(row["subject"])}
    if row.get("choices") is None:
        return choice_entry(id, row, next(iter(row.get("label") or ()), None), tags)
    return choice_entry(id, row, letter(row.get("answer")), tags, row["choices"])


BENCHMARK = ReleasedBenchmark(
    name="mmlu",
    source=SOURCE,
    read=read,
    kind="choice",
    summary="14,042 questions with four options from 57 subjects, no images.",
    citation="D. Hendrycks et al. (2021). Measuring Massive Multitask Language Understanding. arXiv 2009.03300.",
    licence="MIT",
    breakdowns=("subject",),
)
