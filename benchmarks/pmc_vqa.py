"""PMC-VQA: multiple-choice questions about figures of medical papers.

There are two versions. `test_clean` is version 1 after a check by hand (2,000 questions, `images.zip`); published
results are on it unless they say otherwise. `test_2` is version 2, whose figures are cut to one panel (`images_2.zip`).
The fields "Choice A" to "Choice D" repeat their label ("A:Diffuse uptake"). The gold letter is `Answer_label` in
version 1 and `Answer` in version 2.
"""

from __future__ import annotations

import re

from mm_spine.benchmarks.benchmark import Entry, Images, Row, Source, golds
from mm_spine.benchmarks.prompts import place_images
from mm_spine.benchmarks.release import ReleasedBenchmark
from mm_spine.types import AnswerSpec

LETTERS = "ABCD"
SOURCE = Source(
    hub="RadGenome/PMC-VQA",
    files={
        "test_clean": ("test_clean.csv", "test_clean.jsonl"),
        "test_2": ("test_2.csv", "test_2.jsonl"),
    },
    images=("images", "figures", "images.zip", "images_2.zip", "."),
)


def read(row: Row, images: Images, index: int) -> Entry:
    """Read a row of the CSV files of either version."""
    return Entry(
        id=str(row.get("index") or f"pmc_vqa/{index:05d}"),
        body=place_images(str(row["Question"]).strip(), 1),
        spec=AnswerSpec("choice", tuple(_unlabelled(str(row[f"Choice {letter}"]), letter) for letter in LETTERS)),
        golds=golds(row.get("Answer_label") or row.get("Answer")),
        images=(images(row["Figure_path"]),),
    )


def _unlabelled(choice: str, letter: str) -> str:
    return re.sub(rf"^\s*{letter}\s*:", "", choice).strip()


BENCHMARK = ReleasedBenchmark(
    name="pmc_vqa",
    source=SOURCE,
    read=read,
    kind="choice",
    summary="2,000 checked questions about figures of medical papers, four options (test_clean of version 1).",
    citation="X. Zhang et al. (2023). PMC-VQA: Visual Instruction Tuning for Medical Visual Question Answering. "
    "arXiv 2305.10415.",
    licence="CC BY-SA",
    adapt_split="test_clean",
)
