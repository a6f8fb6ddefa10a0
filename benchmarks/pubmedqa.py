"""PubMedQA: research questions with an abstract, answered by yes, no or maybe."""

from __future__ import annotations

import json
from collections.abc import Set
from dataclasses import replace
from pathlib import Path

from mm_spine.benchmarks.benchmark import Entry, Images, Row, Source, golds
from mm_spine.benchmarks.release import ReleasedBenchmark
from mm_spine.types import AnswerSpec, LabelledSet

_LABELED = ("train-*.parquet", "ori_pqal.json", "data/ori_pqal.json", "labeled.jsonl", "rows.jsonl")
SOURCE = Source(
    hub="qiaojin/PubMedQA",
    config="pqa_labeled",
    files={"labeled": _LABELED, "test": _LABELED},
    hub_splits={"labeled": "train", "test": "train"},
)
TEST_IDS = ("test_ground_truth.json", "data/test_ground_truth.json")


def read(row: Row, images: Images, index: int) -> Entry:
    """Read a row of the hub, or of the official `ori_pqal.json` (names in upper case, ids as keys)."""
    # The conclusion of the abstract is in `long_answer`. It gives the answer away, so it is never shown.
    official = "QUESTION" in row
    contexts = row["CONTEXTS"] if official else row["context"]["contexts"]
    question = str(row["QUESTION"] if official else row["question"])
    abstract = "\n".join(str(context) for context in contexts)
    return Entry(
        id=str(row["id"] if official else row["pubid"]),
        body=f"Abstract: {abstract}\nQuestion: {question}",
        spec=AnswerSpec("yes_no_maybe"),
        golds=golds(row.get("final_decision")),
    )


def official_test_ids(source: str | None) -> Set[str]:
    """Return the PubMed ids of the official test set.

    Raises ValueError where the folder `source` holds no `test_ground_truth.json`.
    """
    paths = [Path(source).expanduser() / name for name in TEST_IDS] if source else []
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise ValueError(
            "pubmedqa: the 500 questions of split 'test' are those of test_ground_truth.json in the official "
            f"repository (github.com/pubmedqa/pubmedqa, folder data), which is not in {source or 'the hub data set'}; "
            "give that folder as source=, or take split=labeled, all 1,000 questions"
        )
    try:
        return frozenset(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"{path}: not the JSON of the official repository ({error}); fetch it again") from error


class PubMedQABenchmark(ReleasedBenchmark):
    """PubMedQA: all 1,000 labelled questions (`labeled`), or the 500 of the official test set (`test`)."""

    def load(self, split: str, source: str | None = None, prompt: str = "reason") -> LabelledSet:
        if split != "test":
            return super().load(split, source, prompt)
        ids = official_test_ids(source)
        return _only(super().load("labeled", source, prompt), ids)


def _only(labelled: LabelledSet, ids: Set[str]) -> LabelledSet:
    questions = tuple(question for question in labelled.questions if question.id in ids)
    if not questions:
        raise ValueError("pubmedqa: none of the ids of test_ground_truth.json is among the questions of the folder")
    key = {id: golds for id, golds in labelled.key.items() if id in ids}
    tags = {id: of for id, of in labelled.tags.items() if id in ids}
    return replace(labelled, questions=questions, key=key, tags=tags)


BENCHMARK = PubMedQABenchmark(
    name="pubmedqa",
    source=SOURCE,
    read=read,
    kind="yes_no_maybe",
    summary="1,000 research questions with an abstract: yes, no or maybe (split `test`: the official 500), no images.",
    citation="Q. Jin et al. (2019). PubMedQA: A Dataset for Biomedical Research Question Answering. arXiv 1909.06146.",
    licence="MIT",
    adapt_split="labeled",
)
