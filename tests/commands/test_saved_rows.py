"""Saved responses and samples: one row out for each row in, what a bad row costs, and what is counted."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
from command_line import Command, refused

from mm_spine import voting
from mm_spine.benchmarks import BENCHMARKS, digits
from mm_spine.benchmarks.release import ReleasedBenchmark
from mm_spine.commands import graded_rows, row_stream
from mm_spine.commands.graded_rows import GradedRow, grade_file
from mm_spine.commands.saved_rows import GradingRules, grading_rules
from mm_spine.commands.voted_rows import VotedRow, vote_file
from mm_spine.types import Answer, Verdict


def write(folder: Path, *rows: dict[str, Any] | str) -> Path:
    path = folder / "rows.jsonl"
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def graded(tmp_path: Path, *rows: dict[str, Any] | str, **options: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows written and the summary."""
    summary = grade_file(write(tmp_path, *rows), grading_rules(**options), tmp_path / "out.jsonl")
    return read(tmp_path / "out.jsonl"), asdict(summary)


def voted(tmp_path: Path, *rows: dict[str, Any] | str, **options: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    summary = vote_file(write(tmp_path, *rows), grading_rules(**options), tmp_path / "out.jsonl")
    return read(tmp_path / "out.jsonl"), asdict(summary)


RIGHT = {"id": "r", "response": r"So \boxed{7}.", "answer": 7}
WRONG = {"id": "w", "response": "The answer is 8.", "answer": ["7", 9]}
SILENT = {"id": "s", "response": "Hard to say.", "answer": "7"}
BAD: dict[str, dict[str, Any] | str] = {
    "not JSON": '{"id": "b", ',
    "expected a JSON object, found list": "[1, 2]",
    "no `response` (found 'id', 'answer')": {"id": "b", "answer": "7"},
    "`response` is null": {"id": "b", "response": None, "answer": "7"},
    "use `mm-spine vote`": {"id": "b", "response": ["7", "8"], "answer": "7"},
    "for `mm-spine vote`": {"id": "b", "responses": ["7"], "answer": "7"},
    "must be text, found true": {"id": "b", "response": True, "answer": "7"},
    "must be text, found NaN": {"id": "b", "response": float("nan"), "answer": "7"},
    "no gold": {"id": "b", "response": "7"},
    "no gold to": {"id": "b", "response": "7", "answer": []},
    "not of kind 'integer'": {"id": "b", "response": "7", "answer": "seven"},
    "`answer` must be": {"id": "b", "response": "7", "answer": {"gold": 7}},
    "did you mean 'integer'": {"id": "b", "response": "7", "answer": "7", "kind": "intege"},
    "`choices` must be": {"id": "b", "response": "7", "answer": "7", "choices": {"A": "7"}},
    "`precision` must be": {"id": "b", "response": "7", "answer": "7", "precision": 1.5},
    "`unit` must be": {"id": "b", "response": "7", "answer": "7", "unit": 3},
    "`ordered` must be": {"id": "b", "response": "7", "answer": "7", "ordered": "no"},
    "`id` must be": {"id": ["b"], "response": "7", "answer": "7"},
    "at most 26": {
        "id": "b",
        "response": "A",
        "answer": "A",
        "kind": "choice",
        "choices": list("abcdefghijklmnopqrstuvwxyz0"),
    },
    "an index or a text": {"id": "b", "response": "B", "answer": 1, "kind": "choice", "choices": ["1", "2"]},
}


def test_each_row_gets_its_verdict_in_order(tmp_path: Path) -> None:
    rows, summary = graded(tmp_path, RIGHT, WRONG, SILENT, kind="integer")
    assert [list(row) for row in rows] == [[field.name for field in fields(GradedRow)]] * 3
    assert [(row["id"], row["parsed"], row["score"], row["correct"]) for row in rows] == [
        ("r", "7", 1.0, True),
        ("w", "8", 0.0, False),
        ("s", None, 0.0, False),
    ]
    assert rows[1]["why"] == "'8' is not '7' or '9'."
    assert {key: summary[key] for key in ("rows", "n", "errors", "problems")} == {
        "rows": 3,
        "n": 3,
        "errors": 0,
        "problems": [],
    }
    assert (summary["accuracy"], summary["correct"], summary["unparsed"]) == (1 / 3, 1 / 3, 1 / 3)


@pytest.mark.parametrize("why", BAD)
def test_a_bad_row_costs_itself_says_why_and_is_in_no_mean(tmp_path: Path, why: str) -> None:
    rows, summary = graded(tmp_path, RIGHT, BAD[why], WRONG, kind="integer")
    assert [row["error"] for row in rows] == [False, True, False]
    assert rows[1].items() >= {"parsed": None, "score": 0.0, "correct": False}.items()
    assert rows[1]["why"].startswith("line 2: ") and why in rows[1]["why"]
    assert (summary["rows"], summary["n"], summary["errors"]) == (3, 2, 1)
    assert (summary["accuracy"], summary["unparsed"]) == (0.5, 0.0)
    assert summary["problems"] == [rows[1]["why"]]


def test_a_bad_row_keeps_its_id_where_it_has_one(tmp_path: Path) -> None:
    rows, _ = graded(
        tmp_path, {"id": 12, "answer": "7"}, "{", {"id": None, "response": "7", "answer": "7"}, kind="integer"
    )
    assert [row["id"] for row in rows] == [12, None, None]
    assert rows[2]["correct"] is True


def test_a_fault_in_a_kind_costs_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(response: str, spec: object) -> Answer:
        if "8" in response:
            raise RecursionError("too deep")
        return Answer("7", "7")

    monkeypatch.setattr(graded_rows, "parse", fail)
    rows, summary = graded(tmp_path, RIGHT, WRONG, RIGHT, kind="integer")
    assert [row["correct"] for row in rows] == [True, False, True]
    assert rows[1]["why"] == "line 2: RecursionError while grading: too deep"
    assert summary["errors"] == 1


def test_a_formula_beyond_the_limits_is_counted(tmp_path: Path) -> None:
    tower = {"id": 1, "response": r"\boxed{9^{9^{9^{8}}}}", "answer": r"\pi"}
    _, summary = graded(tmp_path, tower, {"id": 2, "response": "7", "answer": "7"}, kind="math")
    assert summary["checker_stopped"] == 1 and summary["accuracy"] == 0.5


def test_only_the_first_problems_are_kept(tmp_path: Path) -> None:
    _, summary = graded(tmp_path, *["{"] * 9, kind="text")
    assert (summary["errors"], len(summary["problems"]), summary["accuracy"]) == (9, row_stream.LISTED_PROBLEMS, None)


def test_numbers_are_read_as_text_and_blank_lines_are_no_rows(tmp_path: Path) -> None:
    rows, _ = graded(
        tmp_path,
        {"id": 1, "response": 7, "answer": 7.0},
        "",
        {"id": 2, "response": 7.5, "answer": 7},
        "{",
        kind="integer",
    )
    assert [row["correct"] for row in rows] == [True, False, False]
    assert rows[2]["why"].startswith("line 4: ")


def test_a_row_may_name_its_own_kind(tmp_path: Path) -> None:
    yes = {"id": 1, "response": "Yes, it is.", "answer": "yes", "kind": "yes_no"}
    rows, _ = graded(tmp_path, yes, RIGHT, kind="integer")
    assert [row["correct"] for row in rows] == [True, True]
    rows, _ = graded(tmp_path, yes, {**RIGHT, "kind": "integer"})
    assert [row["correct"] for row in rows] == [True, True]


def test_without_kind_or_benchmark_a_row_without_kind_ends_the_work_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"line 2 names no kind: give --kind KIND or --benchmark NAME"):
        graded(tmp_path, {**RIGHT, "kind": "integer"}, RIGHT)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_choices_of_the_row_decide(tmp_path: Path) -> None:
    row = {"id": 1, "response": "The answer is aspirin.", "answer": "B", "choices": ["ibuprofen", "aspirin"]}
    rows, _ = graded(tmp_path, row, {**row, "answer": "ibuprofen"}, {**row, "choices": None}, kind="choice")
    assert [(row["parsed"], row["correct"]) for row in rows] == [("B", True), ("B", False), (None, False)]


def test_control_characters_and_half_characters_survive(tmp_path: Path) -> None:
    odd = '{"id": "\\u0000\\ud83d", "response": "caf\\u00e9 \\u2028\\u0007\\udc00", "answer": "x"}'
    rows, _ = graded(tmp_path, odd, {"id": "é", "response": "ü", "answer": "ü"}, kind="text")
    assert len(rows) == 2
    assert rows[0]["id"] == "\0?" and rows[0]["parsed"].startswith("café")
    assert '"é"' in (tmp_path / "out.jsonl").read_text(encoding="utf-8")


def test_fractions_make_accuracy_and_share_correct_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graded_rows, "grade", lambda *_: Verdict(0.6, False, "two of ten"))
    rows, summary = graded(tmp_path, RIGHT, WRONG, kind="integer")
    assert [(row["score"], row["correct"]) for row in rows] == [(0.6, False)] * 2
    assert (summary["accuracy"], summary["correct"]) == (0.6, 0.0)


# --- benchmarks ---


def test_a_benchmark_gives_spec_gold_and_tags_by_id(tmp_path: Path) -> None:
    labelled = digits.load("adapt")
    rows, summary = graded(
        tmp_path,
        *({"id": question.id, "response": labelled.key[question.id][0]} for question in labelled.questions),
        benchmark="digits",
    )
    assert len(rows) == 256 and all(row["correct"] for row in rows)
    parts = summary["breakdowns"]["kind"]
    assert set(parts) == set(digits.KINDS)
    assert sum(part["n"] for part in parts.values()) == 256
    assert {part["accuracy"] for part in parts.values()} == {1.0}


def test_a_rows_own_answer_goes_before_the_benchmarks(tmp_path: Path) -> None:
    row = {"id": "digits/adapt/0000", "response": "999", "answer": "999", "kind": "integer"}
    rows, _ = graded(tmp_path, row, {**row, "answer": None}, benchmark="digits")
    assert [row["correct"] for row in rows] == [True, False]


def test_an_id_that_the_benchmark_lacks_is_an_error_of_that_row(tmp_path: Path) -> None:
    rows, summary = graded(tmp_path, {"id": "x", "response": "1"}, {**RIGHT, "kind": "integer"}, benchmark="digits")
    assert "'x' is no id of digits/adapt, such as 'digits/adapt/0000'" in rows[0]["why"]
    assert (summary["n"], summary["errors"]) == (1, 1)


def test_the_split_is_the_one_asked_for(tmp_path: Path) -> None:
    row = {"id": "digits/held_out/0000", "response": "7"}
    assert graded(tmp_path, row, benchmark="digits")[1]["errors"] == 1
    assert graded(tmp_path, row, benchmark="digits", split="held_out")[1]["errors"] == 0


def test_a_release_is_loaded_only_for_what_rows_lack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*arguments: Any) -> Any:
        raise AssertionError("loaded")

    monkeypatch.setattr(ReleasedBenchmark, "load", load)
    rules = GradingRules(benchmark=replace(BENCHMARKS["mathvision"], kind="integer"))
    path = write(tmp_path, {**RIGHT, "level": 3}, {**WRONG, "level": 4})
    assert grade_file(path, rules).breakdowns == {
        "level": {"3": {"n": 1, "accuracy": 1.0}, "4": {"n": 1, "accuracy": 0.0}}
    }
    with pytest.raises(AssertionError, match="loaded"):
        grade_file(write(tmp_path, {"id": 1, "response": "7"}), rules)


# --- votes ---


def test_a_vote_counts_classes_and_is_graded_afterwards(tmp_path: Path) -> None:
    rows, summary = voted(
        tmp_path,
        {"id": 1, "responses": ["7", "07", "8", "none"], "answer": "7"},
        {"id": 2, "responses": ["8", "8", "7.0", "8"], "answer": ["7"]},
        kind="integer",
    )
    assert [list(row) for row in rows] == [[field.name for field in fields(VotedRow)]] * 2
    first, second = rows
    assert first == {
        "id": 1,
        "answer": "7",
        "share": 0.5,
        "margin": 0.25,
        "counts": {"7": 2, "8": 1},
        "n": 4,
        "n_parsed": 3,
        "score": 1.0,
        "correct": True,
        "pass_at_1": 0.5,
        "pass_at_n": 1.0,
        "why": "'7' is '7'.",
        "error": False,
    }
    assert (second["answer"], second["correct"], second["pass_at_1"], second["pass_at_n"]) == ("8", False, 0.25, 1.0)
    assert (summary["maj_at_n"], summary["pass_at_1"], summary["pass_at_n"]) == (0.5, 0.375, 1.0)
    assert (summary["share"], summary["unparsed"], summary["responses"]) == (0.625, 1 / 8, 4)


def test_the_vote_does_not_depend_on_the_gold(tmp_path: Path) -> None:
    keys = ("answer", "share", "margin", "counts", "n", "n_parsed")
    row = {"id": 1, "responses": ["8", "7", "7", "7", "9"]}
    golds: list[Any] = [None, "7", "8", 9, ["7", "8"], "seven", {"odd": 1}]
    rows, summary = voted(tmp_path, *({**row, "answer": gold} for gold in golds), kind="integer")
    assert all({key: row[key] for key in keys} == {key: rows[0][key] for key in keys} for row in rows)
    assert [row["score"] for row in rows] == [None, 1.0, 0.0, 0.0, 1.0, None, None]
    assert (summary["errors"], summary["n_labelled"]) == (0, 4)
    assert [line.split(":")[0] for line in summary["problems"]] == [
        "line 6, voted but not graded",
        "line 7, voted but not graded",
    ]


def test_a_vote_is_graded_through_its_shortest_answer_not_its_name() -> None:
    answers = [Answer("1/2", None), Answer("0.50", None), None, Answer("9", None), Answer("0.5", None)]
    classes = ["half", "half", None, "a", "half"]
    assert voting.representative(answers, classes, "half") == Answer("0.5", None)
    assert voting.representative(answers, classes, None) is None


@pytest.mark.parametrize("ids", [True, False])
def test_ties_favour_no_answer_and_are_counted(tmp_path: Path, ids: bool) -> None:
    tied = [{"responses": ["9", "12", "9", "12"], **({"id": i} if ids else {})} for i in range(40)]
    rows, summary = voted(tmp_path, *tied, kind="integer")
    won = [row["answer"] for row in rows]
    assert 8 <= won.count("12") <= 32 and won.count("12") + won.count("9") == 40
    assert (summary["ties"], summary["all_unparsed"], summary["maj_at_n"]) == (40, 0, None)
    again, _ = voted(tmp_path, *({**row, "responses": ["12", "9"]} for row in tied), kind="integer")
    assert [row["answer"] for row in again] == won and rows[0]["margin"] == 0.0


def test_nothing_parsed_is_no_winner_no_tie_and_wrong(tmp_path: Path) -> None:
    rows, summary = voted(tmp_path, {"id": 1, "responses": ["?", "dunno"], "answer": "7"}, kind="integer")
    assert rows[0].items() >= {"answer": None, "share": 0.0, "counts": {}, "n_parsed": 0, "score": 0.0}.items()
    assert rows[0]["correct"] is False
    assert (summary["ties"], summary["all_unparsed"], summary["unparsed"]) == (0, 1, 1.0)


def test_a_bad_row_of_samples_costs_itself(tmp_path: Path) -> None:
    rows, summary = voted(
        tmp_path,
        {"id": 1, "responses": []},
        {"id": 2, "response": "7"},
        {"id": 3, "responses": [7, "7"]},
        kind="integer",
    )
    assert [row["error"] for row in rows] == [True, True, False]
    assert "for `mm-spine grade`" in rows[1]["why"]
    assert (rows[2]["answer"], summary["share"]) == ("7", 1.0)


def test_votes_of_a_benchmark_take_its_golds(tmp_path: Path) -> None:
    labelled = digits.load("adapt")
    question = labelled.questions[0]
    gold = labelled.key[question.id][0]
    rows, summary = voted(tmp_path, {"id": question.id, "responses": [gold, gold, "maybe"]}, benchmark="digits")
    assert (rows[0]["correct"], summary["maj_at_n"], summary["pass_at_1"]) == (True, 1.0, 2 / 3)


# --- the commands ---


def test_grade_prints_the_figures_and_ends_with_the_summary(tmp_path: Path, command: Command) -> None:
    path = write(tmp_path, RIGHT, SILENT, "{")
    ended = command("grade", str(path), "--kind", "integer", "--output", str(tmp_path / "out.jsonl"), "--json")
    assert ended.code == 0
    assert "1 of 3 rows could not be used" in ended.out and "line 3: not JSON" in ended.out
    assert json.loads(ended.out.splitlines()[-1])["accuracy"] == 0.5
    assert len(read(tmp_path / "out.jsonl")) == 3


def test_vote_prints_maj_at_its_number_of_samples(tmp_path: Path, command: Command) -> None:
    path = write(tmp_path, {"id": 1, "responses": ["7", "7", "8"], "answer": 7})
    ended = command("vote", str(path), "--kind", "integer")
    assert ended.code == 0
    assert "maj@3" in ended.out and "pass@3" in ended.out


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--kind", "intger"], "did you mean 'integer'"),
        (["--benchmark", "digit"], "did you mean 'digits'"),
        (["--kind", "text", "--benchmark", "digits"], "exclude each other"),
        (["--kind", "text", "--source", "data"], "--source belongs to a benchmark"),
        ([], "line 1 names no kind"),
        (["--kind", "integer", "--output", "rows.jsonl"], "--output is the input"),
        (["--kind", "integer", "--output", "."], "a folder; give --output a file"),
        (["--kind", "integer", "--output", "rows.jsonl/out"], "cannot be written"),
    ],
)
@pytest.mark.parametrize("name", ["grade", "vote"])
def test_what_concerns_the_whole_file_is_one_message(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch, name: str, options: list[str], expected: str
) -> None:
    write(tmp_path, {**RIGHT, "responses": ["7"]})
    monkeypatch.chdir(tmp_path)
    refused(command(name, "rows.jsonl", *options), expected)


def test_a_file_that_is_missing_empty_or_a_folder_is_refused(tmp_path: Path, command: Command) -> None:
    refused(command("grade", str(tmp_path / "none.jsonl"), "--kind", "text"), "none.jsonl", "no such file")
    refused(command("grade", str(tmp_path), "--kind", "text"), "a folder")
    refused(command("grade", str(write(tmp_path, "", " ")), "--kind", "text"), "rows.jsonl", "is empty")
