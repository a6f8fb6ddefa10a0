"""OmniMedVQA, the open-access part: multiple-choice questions over 42 medical image collections.

The hub holds one archive, `OmniMedVQA.zip`, which must be unpacked first. It holds one JSON file for each collection,
and images under `Images`. The gold is the text of an option and becomes its letter, or several letters where options
have the same text. `option_C` and `option_D` may be absent or null. One row has `modality` in place of `modality_type`.
"""

from __future__ import annotations

from mm_spine.benchmarks.benchmark import Entry, Images, Row, Source, golds
from mm_spine.benchmarks.prompts import place_images
from mm_spine.benchmarks.release import ReleasedBenchmark
from mm_spine.types import AnswerSpec

LETTERS = "ABCD"
_FILES = "QA_information/Open-access/*.json"
SOURCE = Source(
    hub="foreverbeliever/OmniMedVQA",
    files={"test": (_FILES, f"OmniMedVQA/{_FILES}", "Open-access/*.json", "test.jsonl", "rows.jsonl")},
    images=(".", "OmniMedVQA"),
)


def read(row: Row, images: Images, index: int) -> Entry:
    """Read a row of the release's JSON files."""
    options = tuple(str(row[name]).strip() for letter in LETTERS if row.get(name := f"option_{letter}"))
    texts = golds(row.get("gt_answer"))
    letters = tuple(letter for letter, option in zip(LETTERS, options, strict=False) if option in texts)
    tags = {
        "modality_type": row.get("modality_type") or row.get("modality"),
        "question_type": row.get("question_type"),
        "dataset": row.get("dataset"),
    }
    return Entry(
        id=str(row["question_id"]),
        body=place_images(str(row["question"]).strip(), 1),
        spec=AnswerSpec("choice", options),
        golds=letters or texts,
        images=(images(row["image_path"]),),
        tags={name: str(value) for name, value in tags.items() if value},
    )


BENCHMARK = ReleasedBenchmark(
    name="omnimedvqa",
    source=SOURCE,
    read=read,
    kind="choice",
    summary="88,996 questions over 42 open medical image collections, two to four options.",
    citation="Y. Hu et al. (2024). OmniMedVQA: A New Large-Scale Comprehensive Evaluation Benchmark for Medical LVLM. "
    "arXiv 2402.09181.",
    licence="that of each image collection; see the data set's page",
    metric="accuracy: overall, by modality and by question type",
    breakdowns=("modality_type", "question_type"),
)
