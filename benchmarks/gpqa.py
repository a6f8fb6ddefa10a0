"""GPQA-Diamond: questions by and for experts in biology, physics and chemistry, with four options."""

from __future__ import annotations

import hashlib

from mm_spine.benchmarks.benchmark import Entry, Images, Row, Source
from mm_spine.benchmarks.release import ReleasedBenchmark
from mm_spine.processors.answers.choice import LABELS
from mm_spine.types import AnswerSpec

SOURCE = Source(
    hub="Idavidrein/gpqa",
    config="gpqa_diamond",
    files={"test": ("gpqa_diamond.csv", "dataset/gpqa_diamond.csv", "gpqa_diamond.jsonl", "rows.jsonl")},
    hub_splits={"test": "train"},
)
ANSWERS = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")


def order(id: str) -> list[int]:
    """Return the order in which the options of a question are shown, as indices into `ANSWERS`."""
    # The release gives no order. A hash of the id always gives the same one, while no library promises that its
    # shuffles stay the same from one version to the next.
    return sorted(range(len(ANSWERS)), key=lambda i: hashlib.sha256(f"{id}\x1f{i}".encode()).digest())


def read(row: Row, images: Images, index: int) -> Entry:
    """Read a row of the release's CSV. Its explanation is never shown."""
    id = str(row["Record ID"])
    shown = order(id)
    tags = {"domain": row.get("High-level domain"), "subdomain": row.get("Subdomain")}
    return Entry(
        id=id,
        body=str(row["Question"]),
        spec=AnswerSpec("choice", tuple(str(row[ANSWERS[i]]).strip() for i in shown)),
        golds=(LABELS[shown.index(0)],),
        tags={name: str(value).strip() for name, value in tags.items() if value},
    )


BENCHMARK = ReleasedBenchmark(
    name="gpqa",
    source=SOURCE,
    read=read,
    kind="choice",
    summary="GPQA-Diamond: 198 questions for experts with four options, no images; access is granted on the hub.",
    citation="D. Rein et al. (2023). GPQA: A Graduate-Level Google-Proof Q&A Benchmark. arXiv 2311.12022.",
    licence="CC BY 4.0; its authors ask that examples are not published in plain text",
    breakdowns=("domain", "subdomain"),
)
