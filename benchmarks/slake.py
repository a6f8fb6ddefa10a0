"""SLAKE: short questions about radiology images, in English (`test`) and Chinese (`test_zh`).

One `test.json` holds both languages. Images are named "xmlab103/source.jpg", below `imgs`. CLOSED means that there are
few possible answers, not that they are yes and no ("Which is bigger in this image, liver or spleen?"), so yes/no
questions are recognised by their words. Places are lists ("Left Lung, Right"). The prompts of Chinese questions ask for
an answer in Chinese, because their golds are Chinese.
"""

from __future__ import annotations

from mm_spine.benchmarks.benchmark import Entry, Images, Read, Row, Source, golds
from mm_spine.benchmarks.prompts import place_images
from mm_spine.benchmarks.release import ReleasedBenchmark
from mm_spine.benchmarks.vqa_rad import short_answer

FILES = ("test.json", "data/test-*.parquet", "rows.jsonl")
SOURCE = Source(
    hub="BoKelvin/SLAKE",
    files={"test": FILES, "test_zh": FILES},
    images=("imgs", "imgs.zip", "."),
    hub_splits={"test_zh": "test"},
)
LANGUAGES = {"test": "en", "test_zh": "zh"}
BREAKDOWNS = ("answer_type", "modality", "content_type")
_IN_CHINESE = "请用中文回答。"


def reader(language: str) -> Read:
    """Return what reads the rows whose `q_lang` is `language`.

    `img_name` is a path in the official release and on the hub; copies have the picture itself in `image`.
    """

    def read(row: Row, images: Images, index: int) -> Entry | None:
        if row["q_lang"] != language:
            return None
        id, question = str(row["qid"]), str(row["question"]).strip()
        spec = short_answer(question)
        return Entry(
            id=id,
            body=place_images(f"{question}\n{_IN_CHINESE}" if language == "zh" else question, 1),
            spec=spec,
            golds=golds(row.get("answer")),
            images=(images(row["img_name"] if row.get("img_name") else row["image"]),),
            tags=_tags(row),
        )

    return read


def _tags(row: Row) -> dict[str, str]:
    tags = {name: str(row[name]) for name in BREAKDOWNS if row.get(name)}
    return tags | ({"answer_type": tags["answer_type"].strip().lower()} if "answer_type" in tags else {})


class SlakeBenchmark(ReleasedBenchmark):
    """SLAKE, whose splits are languages."""

    def reader(self, split: str) -> Read:
        return reader(LANGUAGES[split])


BENCHMARK = SlakeBenchmark(
    name="slake",
    source=SOURCE,
    read=reader("en"),
    kind="medical",
    summary="1,061 English (test) and 1,033 Chinese (test_zh) questions on CT, MRI and X-ray images.",
    citation="B. Liu et al. (2021). SLAKE: A Semantically-Labeled Knowledge-Enhanced Dataset for Medical Visual "
    "Question Answering. arXiv 2102.09542.",
    licence="CC BY 4.0",
    metric="accuracy: open, closed and overall",
    breakdowns=BREAKDOWNS,
)
