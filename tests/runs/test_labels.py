"""A run on a folder without answers: answers.csv, what it says, and labels that are filled in afterwards."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from lab import Lab, summary_of
from saved_runs import AFTER, BEFORE, item
from small import golds_of
from typer.testing import CliRunner

from mm_spine import files
from mm_spine.cli import app
from mm_spine.config import ConfigError
from mm_spine.evaluation.answer_table import answer_rows, changes_by_split, vote_share
from mm_spine.reporting.compare import compare_runs
from mm_spine.reporting.result import sentences, split_results
from mm_spine.reporting.saved_run import read_run
from mm_spine.runs.labels import LabelSheet
from mm_spine.types import AnswerSpec, Question


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def fill(sheet: Path, answer: Callable[[dict[str, str]], str]) -> None:
    rows = rows_of(sheet)
    files.write_csv(sheet, [{**row, "answer": answer(row)} for row in rows])


@pytest.fixture
def unlabelled(lab: Lab, tmp_path: Path) -> Path:
    """A run on the laboratory's questions without their answers; its folder may be written to."""
    data = lab.folder / "without-answers"
    if not data.exists():
        shutil.copytree(lab.data, data)
        rows = files.read_json_lines(data / "questions.jsonl")
        for row in rows:
            del row["answer"]
        (data / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Path(shutil.copytree(lab.run("without-answers", data=data), tmp_path / "run"))


def test_answers_are_written_before_and_after(unlabelled: Path) -> None:
    rows, after = rows_of(unlabelled / "answers.csv"), files.read_json_lines(unlabelled / "evaluation/after.jsonl")
    assert [row["id"] for row in rows] == [line["id"] for line in after]
    for row, line in zip(rows, after, strict=True):
        assert row["vote_after"] == ("" if line["vote"] is None else line["vote"]["text"])
        voted = [name for name in line["classes"] if name is not None]
        share = max(map(voted.count, voted)) / len(line["classes"]) if voted else 0
        assert float(row["vote_share_after"]) == pytest.approx(share, abs=1e-4)
    for split, counted in summary_of(unlabelled)["answers"].items():
        own = [row for row in rows if row["split"] == split]
        assert counted["n"] == len(own) and counted["changed"] == sum(row["changed"] == "yes" for row in own)


def test_rows_by_hand() -> None:
    questions = [Question(name, (), f"what is {name}?", AnswerSpec("text")) for name in "abcdef"]
    before = [*BEFORE, item("x", None, "1111", text="only before")]
    rows = answer_rows(questions, before, [item("a", None, "1112", text="other"), *AFTER[1:]])
    assert [(row.id, row.changed) for row in rows][:2] == [("a", "yes"), ("b", "no")]
    assert (rows[0].answer_before, rows[0].answer_after) == ("said", "other")
    assert (rows[0].vote_before, rows[0].vote_after, rows[0].vote_share_before) == ("2", "1", 0.75)
    assert changes_by_split(rows)["adapted"] == {
        "n": 4, "changed": 1, "vote_share_before": 0.875, "vote_share_after": 0.875,
    }  # fmt: skip
    # "1222" before, "1112" after: 3 to 1, or ln 4 - 3/4 ln 3 = 0.5623 nats.
    assert (rows[0].answer_entropy_before, rows[0].answer_entropy_after) == (0.5623, 0.5623)
    assert [(row.distinct_answers_before, row.distinct_answers_after) for row in rows[1:3]] == [(2, 2), (1, 1)]
    assert vote_share(item("a", None, ("1", "2", "1"))) == 0.6667


def test_a_run_without_answers_says_what_changed_and_how_to_know_more(unlabelled: Path) -> None:
    split, _ = split_results(read_run(unlabelled))
    said = " ".join(sentences(split))
    counted = summary_of(unlabelled)["answers"]["adapted"]
    assert f"{counted['changed']} of {counted['n']} greedy answers changed" in said
    assert f"mm-spine label {unlabelled} --n {counted['n']}" in said


def test_labels_filled_in_afterwards_give_the_scores_of_the_data_s_own(lab: Lab, unlabelled: Path) -> None:
    labelled, sheet = summary_of(lab.run("base")), LabelSheet(unlabelled)
    assert sheet.draw(50) == 6
    golds = {f"questions-{i + 1}": golds_of(digit) for i, digit in enumerate("121212")}
    fill(sheet.path, lambda row: golds[row["id"]][0])
    summary = sheet.apply()
    # One gold for each question here, several in the data: no score can be higher.
    assert summary["before"]["n_labelled"] == 6
    assert 0 <= summary["after"]["pass_at_1"] <= labelled["after"]["pass_at_1"]
    assert summary["labels"] == {"file": "labels.csv", "drawn": 6, "used": 6}
    for by in ("greedy", "vote"):
        turned = summary["turned"]["adapted"][by]
        assert turned["n"] == 6 and sum(each["learnt"] for each in turned["bins"]) == turned["learnt"]
    greedy = summary["turned"]["adapted"]["greedy"]
    gain = summary["after"]["greedy"] - summary["before"]["greedy"]
    assert greedy["learnt"] - greedy["corrupted"] == pytest.approx(6 * gain)
    assert summary["before"]["mean_length"] == labelled["before"]["mean_length"]
    shown = CliRunner().invoke(app, ["compare", str(unlabelled)])
    assert shown.exit_code == 0 and "[" in shown.output


def test_an_answer_that_is_taken_back_counts_no_more(unlabelled: Path) -> None:
    sheet = LabelSheet(unlabelled)
    assert sheet.draw(3) == 3
    fill(sheet.path, lambda row: "1")
    assert sheet.apply()["after"]["n_labelled"] == 3
    adapted, *_ = compare_runs([unlabelled]).rows
    assert adapted.questions == 3 and adapted.greedy_gain is not None
    first = rows_of(sheet.path)[0]["id"]
    fill(sheet.path, lambda row: "" if row["id"] == first else "1")
    assert LabelSheet(unlabelled).apply()["after"]["n_labelled"] == 2


def test_a_larger_draw_keeps_the_smaller_one_and_its_answers(unlabelled: Path) -> None:
    sheet = LabelSheet(unlabelled)
    sheet.draw(2)
    fill(sheet.path, lambda row: "2")
    first = rows_of(sheet.path)
    assert sheet.draw(5) == 5
    assert rows_of(sheet.path)[:2] == first
    assert [row["answer"] for row in rows_of(sheet.path)[2:]] == ["", "", ""]


def test_what_cannot_be_used_is_named_and_costs_itself_alone(
    unlabelled: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sheet = LabelSheet(unlabelled)
    with pytest.raises(ConfigError, match=r"labels\.csv: not there; draw questions with: mm-spine label"):
        sheet.apply()
    sheet.draw(3)
    with pytest.raises(ConfigError, match="no answer that can be used"):
        sheet.apply()
    bad = rows_of(sheet.path)[1]["id"]
    fill(sheet.path, lambda row: "no number" if row["id"] == bad else "1")
    assert sheet.apply()["labels"]["used"] == 2
    assert any("row 3: left out" in record.getMessage() for record in caplog.records)
    with pytest.raises(ConfigError, match="split='train'"):
        sheet.draw(3, "train")


def test_a_second_answer_to_a_question_is_said(unlabelled: Path, caplog: pytest.LogCaptureFixture) -> None:
    sheet = LabelSheet(unlabelled)
    sheet.draw(2)
    fill(sheet.path, lambda row: "1")
    first, *rest = rows_of(sheet.path)
    files.write_csv(sheet.path, [first, *rest, {**first, "answer": "2"}])
    assert sheet.apply()["labels"] == {"file": "labels.csv", "drawn": 3, "used": 2}
    assert any(f"row 4: question {first['id']!r} has another answer above" in m for m in caplog.messages)


def test_changed_questions_are_not_labelled(lab: Lab, unlabelled: Path) -> None:
    table = lab.folder / "without-answers" / "questions.jsonl"
    was = table.read_text()
    try:
        table.write_text(was.replace("digit", "letter"))
        with pytest.raises(ConfigError, match="changed since the run; restore the data"):
            LabelSheet(unlabelled).draw(6)
    finally:
        table.write_text(was)


def test_only_questions_on_the_sheet_must_be_those_of_the_run(lab: Lab, unlabelled: Path) -> None:
    sheet = LabelSheet(unlabelled)
    sheet.draw(1)
    (drawn,) = (row["id"] for row in rows_of(sheet.path))
    fill(sheet.path, lambda row: "1")
    table = lab.folder / "without-answers" / "questions.jsonl"
    was = table.read_text().splitlines(keepends=True)
    changed = [line.replace("digit", "letter") if f"questions-{i + 1}" != drawn else line for i, line in enumerate(was)]
    try:
        table.write_text("".join(changed))
        assert LabelSheet(unlabelled).apply()["labels"]["used"] == 1
        with pytest.raises(ConfigError, match="changed since the run"):
            LabelSheet(unlabelled).draw(6)
        table.write_text("".join(line.replace("digit", "letter") for line in was))
        with pytest.raises(ConfigError, match=f"{drawn}' changed since the run"):
            LabelSheet(unlabelled).apply()
    finally:
        table.write_text("".join(was))


def test_a_run_of_a_version_that_added_no_request_is_labelled_as_it_was_asked(unlabelled: Path) -> None:
    config = unlabelled / "config.yaml"
    saved = yaml.safe_load(config.read_text())
    config.write_text(yaml.safe_dump({**saved, "prompt": "reason"}))
    sheet = LabelSheet(unlabelled)
    assert sheet.draw(3) == 3
    assert all("\n" not in row["question"] for row in rows_of(sheet.path))


def test_the_sheet_shows_the_question_without_the_request(lab: Lab, unlabelled: Path) -> None:
    (unlabelled / "fingerprint.json").unlink()
    config = unlabelled / "config.yaml"
    config.write_text(yaml.safe_dump({**yaml.safe_load(config.read_text()), "prompt": "short"}))
    sheet = LabelSheet(unlabelled)
    assert any("Answer with" in question.prompt for question in sheet.sets["adapted"].questions)
    sheet.draw(3)
    assert not any("Answer with" in row["question"] for row in rows_of(sheet.path))


def test_votes_are_graded_by_the_labels_and_the_report_lacks_nothing(lab: Lab, unlabelled: Path) -> None:
    graded = files.read_json_lines(lab.run("base") / "evaluation/steps.jsonl")
    sheet = LabelSheet(unlabelled)
    assert not (unlabelled / "evaluation/steps.jsonl").exists()
    assert not any("evaluation/steps.jsonl" in sentence for sentence in read_run(unlabelled).missing)
    sheet.draw(6)
    fill(sheet.path, lambda row: "1")
    sheet.apply()
    rows = files.read_json_lines(unlabelled / "evaluation/steps.jsonl")
    assert [row["step"] for row in rows] == [row["step"] for row in graded]
    assert [row["majority_ratio"] for row in rows] == [row["majority_ratio"] for row in graded]
    assert all(0 <= row["label_accuracy"] <= 1 for row in rows)
    assert not any("evaluation/steps.jsonl" in sentence for sentence in read_run(unlabelled).missing)


def test_a_run_whose_questions_all_have_answers_needs_none(lab: Lab) -> None:
    with pytest.raises(ConfigError, match="has an answer already"):
        LabelSheet(lab.run("base")).draw(3)


def test_the_command_draws_and_reads(unlabelled: Path) -> None:
    drawn = CliRunner().invoke(app, ["label", str(unlabelled), "--n", "4"])
    assert drawn.exit_code == 0 and "fill in the column answer" in drawn.output
    fill(unlabelled / "labels.csv", lambda row: "1")
    read = CliRunner().invoke(app, ["label", str(unlabelled)])
    assert read.exit_code == 0 and "questions with a gold answer" in read.output
    assert "questions with a gold answer" in (unlabelled / "report.html").read_text()
