"""ScienceQA-IMG: the questions of ScienceQA that come with an image; school science, two to five options.

`answer` is the index of the right option, counted from 0. The hub's rows have no id, so one is made of the row's index.
The original `problems.json` holds all splits, and questions without an image; these are not asked. Its images are under
{split}/{id}/. Its lectures and solutions are never shown.
"""

from __future__ import annotations

import re

from mm_spine.benchmarks.benchmark import Entry, Images, Row, Source, golds, letter
from mm_spine.benchmarks.prompts import place_images
from mm_spine.benchmarks.release import ReleasedBenchmark
from mm_spine.types import AnswerSpec

SOURCE = Source(
    hub="lmms-lab-encoder/ScienceQA",
    config="ScienceQA-IMG",
    files={"test": ("test-*.parquet", "problems.json", "data/scienceqa/problems.json", "test.jsonl", "rows.jsonl")},
    images=("images", "data/scienceqa/images", "data/images", "."),
)


def read(row: Row, images: Images, index: int) -> Entry | None:
    """Read a row of the hub or of the original."""
    if row.get("image") is None or row.get("split", "test") != "test":
        return None
    choices = tuple(str(choice) for choice in row["choices"])
    hint = str(row.get("hint") or "").strip()
    body = f"Context: {hint}\n{row['question']}" if hint else str(row["question"])
    tags = {"subject": row.get("subject"), "topic": row.get("topic"), "grade": _grades(str(row.get("grade") or ""))}
    return Entry(
        id=str(row.get("id") or f"scienceqa/test/{index:05d}"),
        body=place_images(body, 1),
        spec=AnswerSpec("choice", choices),
        golds=golds(letter(row.get("answer"))),
        images=(images(_image(row)),),
        tags={name: str(value) for name, value in tags.items() if value},
    )


def _image(row: Row) -> object:
    return f"{row['split']}/{row['id']}/{row['image']}" if "split" in row and "id" in row else row["image"]


def _grades(grade: str) -> str:
    """Return the group of a grade."""
    # The groups of the ScienceQA paper (arXiv 2209.09513), grades 1-6 and 7-12.
    number = re.fullmatch(r"grade(\d+)", grade)
    if number is None:
        return ""
    return "1-6" if int(number[1]) <= 6 else "7-12"


BENCHMARK = ReleasedBenchmark(
    name="scienceqa",
    source=SOURCE,
    read=read,
    kind="choice",
    summary="2,017 questions of school science with an image, two to five options.",
    citation="P. Lu et al. (2022). Learn to Explain: Multimodal Reasoning via Thought Chains for Science Question "
    "Answering. arXiv 2209.09513.",
    licence="CC BY-NC-SA 4.0",
    metric="accuracy: overall, by subject and by grades",
    breakdowns=("subject", "grade", "topic"),
)
