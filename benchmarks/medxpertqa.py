"""MedXpertQA-MM: expert-level medical exam questions with one to six images and five options.

The question lists its options itself ("Answer Choices: (A) ... (B) ..."), so it is asked as released. The hub gives
`options` as a mapping, `label` as a letter and `images` as names. The release's own evaluation has lists instead: of
{"letter", "content"}, of letters, and of {"image_path"}.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mm_spine.benchmarks.benchmark import Entry, Images, Row, Source, golds
from mm_spine.benchmarks.medqa import inline_choices
from mm_spine.benchmarks.prompts import place_images
from mm_spine.benchmarks.release import ReleasedBenchmark
from mm_spine.types import AnswerSpec

SOURCE = Source(
    hub="TsinghuaC3I/MedXpertQA",
    config="MM",
    files={
        "test": ("test.jsonl", "test-*.parquet", "medxpertqa_mm_input.jsonl", "rows.jsonl"),
        "dev": ("dev.jsonl", "dev-*.parquet"),
    },
    images=("images", "images.zip", "."),
)
BREAKDOWNS = ("medical_task", "body_system", "question_type")


def read(row: Row, images: Images, index: int) -> Entry:
    """Read a row of the hub or of the release's evaluation. Without `options`, they are read from the question."""
    question = str(row["question"])
    names = [_field(image, "image_path") for image in row.get("images") or ()]
    label = row.get("label") or ()
    return Entry(
        id=str(row["id"]),
        body=place_images(question, len(names)),
        spec=AnswerSpec("choice", _choices(row.get("options"), question)),
        golds=golds(label) if isinstance(label, str) else golds(*label),
        images=tuple(images(name) for name in names),
        tags={name: str(row[name]) for name in BREAKDOWNS if row.get(name)},
        lists_options="Answer Choices:" in question,
    )


def _choices(options: Any, question: str) -> tuple[str, ...]:
    if not options:
        return inline_choices(question).choices
    if isinstance(options, Mapping):
        return tuple(str(options[letter]) for letter in sorted(options) if options[letter] is not None)
    return tuple(str(_field(option, "content")) for option in options)


def _field(value: Any, name: str) -> Any:
    """Return `value[name]` where `value` is a mapping with that key, else `value` (a name, or the hub's picture)."""
    return value[name] if isinstance(value, Mapping) and name in value else value


BENCHMARK = ReleasedBenchmark(
    name="medxpertqa",
    source=SOURCE,
    read=read,
    kind="choice",
    summary="MedXpertQA MM: 2,000 expert-level medical questions with images and five options.",
    citation="Y. Zuo et al. (2025). MedXpertQA: Benchmarking Expert-Level Medical Reasoning and Understanding. "
    "arXiv 2501.18362.",
    licence="MIT",
    metric="accuracy: overall, by medical task, body system, and reasoning or understanding",
    breakdowns=BREAKDOWNS,
)
