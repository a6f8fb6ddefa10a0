"""The text benchmarks: rows of every layout they accept, real rows where they are at hand, ids, tags, options."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mm_spine.benchmarks import BENCHMARKS, aime, amc, gpqa, math500, medqa, mmlu, pubmedqa
from mm_spine.benchmarks.benchmark import Entry, Read
from mm_spine.benchmarks.release import labelled_set
from mm_spine.processors import answers
from mm_spine.types import LabelledSet

REAL = {"aime24": 30, "amc": 40, "math500": 40, "medqa": 40, "mmlu_medical": 40}
NAMES = {"mmlu_medical": "mmlu"}

MEDQA_ROW = {
    "question": "A man has a cough. What is it?",
    "answer": "Pertussis",
    "options": {"D": "A cold", "B": "Pertussis", "C": "Asthma", "A": "Croup"},
    "meta_info": "step2&3",
    "answer_idx": "B",
    "metamap_phrases": ["cough"],
}
MMLU_ROW = {"question": "2 + 2?", "subject": "elementary_mathematics", "choices": ["1", "2", "3", "4"], "answer": 3}
GPQA_ROW = {
    "Question": "Which particle?\n",
    "Correct Answer": "the muon\n",
    "Incorrect Answer 1": "the pion",
    "Incorrect Answer 2": "the kaon",
    "Incorrect Answer 3": "the gluon",
    "Explanation": "It is the muon.",
    "Record ID": "recOne",
    "High-level domain": "Physics",
    "Subdomain": "High-energy particle physics",
}
PUBMEDQA_ROW = {
    "pubid": 21645374,
    "question": "Do mitochondria matter?",
    "context": {
        "contexts": ["The plant dies.", "We looked."],
        "labels": ["BACKGROUND", "METHODS"],
        "meshes": ["Cells"],
    },
    "long_answer": "They plainly matter.",
    "final_decision": "yes",
}
MATH500_ROW = {
    "problem": "What is $1+1$?",
    "solution": "It is $\\boxed{2}$.",
    "answer": "2",
    "subject": "Prealgebra",
    "level": 1,
    "unique_id": "test/prealgebra/1.json",
}
AIME_ROW = {"id": 60, "problem": "Find $xy$.", "solution": "It is 25.", "answer": "025", "url": "u", "year": "2024"}
AMC_ROW = {"id": 0, "problem": "What is $m+n$?", "answer": 265.0, "url": "u"}


def no_images(value: Any) -> Path:
    raise AssertionError(f"a text benchmark asked for the image {value!r}")


def entry(read: Read, row: Mapping[str, Any], place: int = 0) -> Entry:
    found = read(row, no_images, place)
    assert found is not None
    assert found.images == ()
    return found


def jsonl(folder: Path, rows: Sequence[Mapping[str, Any]], name: str = "rows.jsonl") -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def parquet(folder: Path, rows: Sequence[Mapping[str, Any]], name: str) -> str:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), folder / name)
    return str(folder)


def table(folder: Path, rows: Sequence[Mapping[str, Any]], name: str) -> str:
    with (folder / name).open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(folder)


def official_pubmedqa(folder: Path) -> str:
    """The layout of PubMedQA's repository: two questions, of which the second is one of the test set."""
    row = {"CONTEXTS": ["The plant dies."], "LONG_ANSWER": "They plainly matter.", "final_decision": "maybe"}
    (folder / "data").mkdir()
    labeled = {"11": {"QUESTION": "First?", **row}, "22": {"QUESTION": "Second?", **row}}
    (folder / "data" / "ori_pqal.json").write_text(json.dumps(labeled))
    (folder / "data" / "test_ground_truth.json").write_text(json.dumps({"22": "yes"}))
    return str(folder)


def load(name: str, source: str) -> LabelledSet:
    return BENCHMARKS[name].load(BENCHMARKS[name].adapt_split, source=source)


# Rows


def test_a_medqa_row_of_the_hub() -> None:
    found = entry(medqa.read, MEDQA_ROW, 7)
    assert found.id == "medqa/test/00007"
    assert found.spec.choices == ("Croup", "Pertussis", "Asthma", "A cold")
    assert found.golds == ("B",)
    assert found.tags == {"step": "step2&3"}


def test_a_missing_fifth_option_is_no_option() -> None:
    assert len(entry(medqa.read, {**MEDQA_ROW, "options": {**MEDQA_ROW["options"], "E": None}}).spec.choices) == 4  # type: ignore[dict-item]


def test_a_medqa_row_of_medxpertqas_release_asks_the_same() -> None:
    copy = {
        "id": "test-00007",
        "question": "A man has a cough. What is it?\nAnswer Choices: (A) Croup (B) Pertussis (C) Asthma (D) A cold",
        "label": ["B"],
    }
    hub, copied = entry(medqa.read, MEDQA_ROW), entry(medqa.read, copy)
    assert (copied.id, copied.body, copied.spec, copied.golds) == ("test-00007", hub.body, hub.spec, hub.golds)


@pytest.mark.parametrize("label", ["E", None, "", "?"])
def test_a_label_that_is_no_option_or_withheld_costs_the_label_alone(label: str | None) -> None:
    labelled = labelled_set("medqa", [entry(medqa.read, {**MEDQA_ROW, "answer_idx": label})], "reason")
    assert len(labelled.questions) == 1 and not labelled.key
    assert ["'E'" in problem for problem in labelled.problems] == ([True] if label == "E" else [])


def test_an_mmlu_row_of_the_hub_counts_its_answer_from_0() -> None:
    found = entry(mmlu.read, MMLU_ROW, 14041)
    assert (found.id, found.golds) == ("mmlu/test/14041", ("D",))
    assert found.tags == {"subject": "elementary_mathematics"}


def test_a_gpqa_gold_follows_its_option_and_never_moves() -> None:
    found = entry(gpqa.read, GPQA_ROW)
    assert found.spec.choices == ("the gluon", "the pion", "the muon", "the kaon")
    assert found.golds == ("C",)
    assert entry(gpqa.read, GPQA_ROW, 5) == found
    assert found.tags == {"domain": "Physics", "subdomain": "High-energy particle physics"}


def test_gpqa_golds_spread_over_the_letters() -> None:
    counts = [sum(gpqa.order(f"rec{i}").index(0) == place for i in range(400)) for place in range(4)]
    assert min(counts) > 70


def test_the_explanation_of_gpqa_is_not_shown() -> None:
    assert "It is the muon" not in str(entry(gpqa.read, GPQA_ROW))


def test_a_pubmedqa_row_shows_the_abstract_and_not_its_conclusion() -> None:
    found = entry(pubmedqa.read, PUBMEDQA_ROW)
    assert found.id == "21645374"
    assert found.body == "Abstract: The plant dies.\nWe looked.\nQuestion: Do mitochondria matter?"
    assert (found.spec.kind, found.golds) == ("yes_no_maybe", ("yes",))
    assert "plainly" not in str(found)


def test_a_math500_row_of_the_hub() -> None:
    found = entry(math500.read, MATH500_ROW)
    assert (found.id, found.body, found.golds) == ("test/prealgebra/1.json", "What is $1+1$?", ("2",))
    assert found.tags == {"subject": "Prealgebra", "level": "1"}


@pytest.mark.parametrize(("read", "row"), [(aime.read, AIME_ROW), (amc.read, AMC_ROW), (math500.read, MATH500_ROW)])
def test_ttrls_release_of_the_row_asks_the_same(read: Read, row: Mapping[str, Any]) -> None:
    hub = entry(read, row)
    copied = entry(read, {"prompt": row["problem"], "answer": str(row["answer"]), "source": "x", "id": hub.id})
    assert (copied.id, copied.body, copied.golds, copied.spec) == (hub.id, hub.body, hub.golds, hub.spec)


def test_golds_of_amc_are_integers_again() -> None:
    assert entry(amc.read, AMC_ROW).golds == ("265",)


# Options in the question


def test_inline_options_are_split_at_letters_that_stand_alone_in_order() -> None:
    found = medqa.inline_choices("Why?\nAnswer Choices: (A) Increase (in BP) (B) T(B) cells (C) (iv) fluids (D) None")
    assert found == ("Why?", ("Increase (in BP)", "T(B) cells", "(iv) fluids", "None"), True)


def test_the_list_is_the_last_one_of_the_question() -> None:
    found = medqa.inline_choices("Who wrote 'Answer Choices: (A)'? Answer Choices: (A) I (B) You")
    assert (found.body, found.choices) == ("Who wrote 'Answer Choices: (A)'?", ("I", "You"))


@pytest.mark.parametrize("extra", ["(B) deficiency", "(E) deficiency"])
def test_where_a_mark_could_be_text_the_question_is_shown_as_released(extra: str) -> None:
    question = f"Why?\nAnswer Choices: (A) vitamin {extra} (B) iron (C) zinc (D) lead"
    found = entry(medqa.read, {"id": "q", "question": question, "label": ["C"]})
    assert found.lists_options
    assert found.body == question
    assert len(found.spec.choices) == 4


def test_a_question_without_options_is_an_error() -> None:
    with pytest.raises(ValueError, match="no options"):
        medqa.inline_choices("Why?")


# Whole releases


@pytest.mark.parametrize(
    ("name", "write", "file", "row", "gold"),
    [
        ("aime24", parquet, "data/train-00000-of-00001.parquet", AIME_ROW, "025"),
        ("aime25", jsonl, "test.jsonl", {"problem": "Find $b$.", "answer": "70", "id": "0"}, "70"),
        ("amc", parquet, "data/train-00000-of-00001.parquet", AMC_ROW, "265"),
        ("gpqa", table, "gpqa_diamond.csv", GPQA_ROW, "C"),
        ("math500", jsonl, "test.jsonl", MATH500_ROW, "2"),
        ("medqa", jsonl, "phrases_no_exclude_test.jsonl", MEDQA_ROW, "B"),
        ("mmlu", parquet, "all/test-00000-of-00001.parquet", MMLU_ROW, "D"),
        ("pubmedqa", parquet, "pqa_labeled/train-00000-of-00001.parquet", PUBMEDQA_ROW, "yes"),
    ],
)
def test_a_copy_of_the_hub_loads(
    name: str, write: Callable[..., str], file: str, row: Mapping[str, Any], gold: str, tmp_path: Path
) -> None:
    decoy = tmp_path / Path(file).parent / f"dev{Path(file).suffix}"
    decoy.parent.mkdir(parents=True, exist_ok=True)
    decoy.write_text("not of this split")
    labelled = load(name, write(tmp_path, [row], file))
    assert [question.benchmark for question in labelled.questions] == [name]
    assert list(labelled.key.values()) == [(gold,)]
    assert labelled.problems == ()


def test_the_official_folder_of_pubmedqa_has_both_splits(tmp_path: Path) -> None:
    source = official_pubmedqa(tmp_path)
    labeled = pubmedqa.BENCHMARK.load("labeled", source=source)
    test = pubmedqa.BENCHMARK.load("test", source=source)
    assert [question.id for question in labeled.questions] == ["11", "22"]
    assert test.questions == labeled.questions[1:]
    assert test.key == {"22": ("maybe",)}
    assert not any("plainly" in question.prompt for question in labeled.questions)


def test_the_test_split_of_pubmedqa_needs_its_list_of_questions(tmp_path: Path) -> None:
    source = parquet(tmp_path, [PUBMEDQA_ROW], "pqa_labeled/train-00000-of-00001.parquet")
    for place in (source, None):
        with pytest.raises(ValueError, match=r"test_ground_truth\.json.*split=labeled"):
            pubmedqa.BENCHMARK.load("test", source=place)


def test_a_damaged_list_of_questions_is_named(tmp_path: Path) -> None:
    (tmp_path / "test_ground_truth.json").write_text('{"22": ')
    with pytest.raises(ValueError, match="test_ground_truth.json: not the JSON"):
        pubmedqa.BENCHMARK.load("test", source=str(tmp_path))


def test_a_list_of_other_questions_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "test_ground_truth.json").write_text("{}")
    source = parquet(tmp_path, [PUBMEDQA_ROW], "pqa_labeled/train-00000-of-00001.parquet")
    with pytest.raises(ValueError, match="none of the ids"):
        pubmedqa.BENCHMARK.load("test", source=source)


def test_a_choice_is_asked_with_its_options_below_it(tmp_path: Path) -> None:
    (question,) = load("mmlu", jsonl(tmp_path, [MMLU_ROW])).questions
    assert question.prompt.startswith("2 + 2?\n(A) 1\n(B) 2\n(C) 3\n(D) 4\n")
    assert question.prompt.endswith("\\boxed{}.")


def test_rows_without_ids_have_one_each(tmp_path: Path) -> None:
    labelled = load("medqa", jsonl(tmp_path, [MEDQA_ROW, MEDQA_ROW, MEDQA_ROW]))
    assert [question.id for question in labelled.questions] == [f"medqa/test/{place:05d}" for place in range(3)]


# Real rows


@pytest.mark.parametrize("folder", REAL)
def test_every_real_row_is_read(folder: str, shared: Path) -> None:
    labelled = load(NAMES.get(folder, folder), str(shared / "data" / "real_rows" / folder))
    assert labelled.problems == ()
    assert len(labelled.questions) == len(labelled.key) == REAL[folder]
    for question in labelled.questions:
        assert question.images == ()
        assert "Answer Choices" not in question.prompt
        assert len(question.spec.choices) == (4 if question.spec.kind == "choice" else 0)
        assert all(question.spec.choices) and not any("(B)" in choice for choice in question.spec.choices)


@pytest.mark.parametrize("folder", REAL)
def test_every_real_gold_is_right_however_it_is_written(folder: str, shared: Path) -> None:
    labelled = load(NAMES.get(folder, folder), str(shared / "data" / "real_rows" / folder))
    for question in labelled.questions:
        (gold,) = labelled.key[question.id]
        for response in (f"So it is \\boxed{{{gold}}}.", f"The answer is {gold}.", f"The answer is ${gold}$.", gold):
            verdict = answers.grade(answers.parse(response, question.spec), gold, question.spec)
            assert verdict.correct, (question.id, response, verdict)


@pytest.mark.parametrize("folder", REAL)
def test_a_real_gold_of_another_row_is_wrong(folder: str, shared: Path) -> None:
    labelled = load(NAMES.get(folder, folder), str(shared / "data" / "real_rows" / folder))
    golds = sorted({gold for (gold,) in labelled.key.values()})
    for question in labelled.questions:
        (gold,) = labelled.key[question.id]
        other = golds[golds.index(gold) - 1]
        assert not answers.grade(answers.parse(f"\\boxed{{{other}}}", question.spec), gold, question.spec).correct
