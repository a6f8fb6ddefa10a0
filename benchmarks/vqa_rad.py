"""VQA-RAD: clinicians' questions about radiology images, answered by yes, no or a short phrase.

The hub's copy gives only image, question and answer. Its questions are closed if their words ask for yes or no
(`asks_yes_no`); their answers are never looked at. The original `VQA_RAD Dataset Public.json` says OPEN or CLOSED, in
some rows with a space after it, and counts "Is this a CT or an MRI?" as closed. It holds the training part too: only
rows whose `phrase_type` is test_freeform or test_para are asked. Some of its answers are numbers.
"""

from __future__ import annotations

from mm_spine.benchmarks.benchmark import Entry, Images, Row, Source, golds
from mm_spine.benchmarks.prompts import asks_yes_no, place_images
from mm_spine.benchmarks.release import ReleasedBenchmark
from mm_spine.processors.answers.medical import CLOSED
from mm_spine.types import AnswerSpec, ImageLike

SOURCE = Source(
    hub="flaviagiammarino/vqa-rad",
    files={"test": ("data/test-*.parquet", "VQA_RAD Dataset Public.json", "test.jsonl", "rows.jsonl")},
    images=("VQA_RAD Image Folder", "images", "images.zip", "."),
)


def read(row: Row, images: Images, index: int) -> Entry | None:
    """Read a row of the hub (`image`) or of the original (`image_name`, `qid`, `answer_type`, `phrase_type`)."""
    if not str(row.get("phrase_type") or "test").startswith("test"):
        return None
    id = f"vqa_rad/test/{index:05d}" if row.get("qid") is None else str(row["qid"])
    return medical_entry(id, row, images(row["image_name"] if "image_name" in row else row["image"]))


def medical_entry(id: str, row: Row, image: ImageLike) -> Entry:
    """Make an entry with a short answer.

    Its tag `answer_type` is that of the release; where that is missing, the words of the question decide.
    """
    question = str(row["question"]).strip()
    spec = short_answer(question)
    answer_type = row.get("answer_type") or ("closed" if spec.choices else "open")
    return Entry(
        id=id,
        body=place_images(question, 1),
        spec=spec,
        golds=golds(row.get("answer")),
        images=(image,),
        tags={"answer_type": str(answer_type).strip().lower()},
    )


def short_answer(question: str) -> AnswerSpec:
    """Tell from the words of a question whether it asks for yes or no, or for a short phrase."""
    return AnswerSpec("medical", CLOSED if asks_yes_no(question) else ())


BENCHMARK = ReleasedBenchmark(
    name="vqa_rad",
    source=SOURCE,
    read=read,
    kind="medical",
    summary="451 questions of clinicians about radiology images: yes, no or a short phrase.",
    citation="J. J. Lau et al. (2018). A dataset of clinically generated visual questions and answers about radiology "
    "images. Scientific Data 5, 180251.",
    licence="CC0 1.0",
    metric="accuracy: open, closed and overall",
    breakdowns=("answer_type",),
)
