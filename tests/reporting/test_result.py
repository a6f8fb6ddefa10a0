"""Scores before and after, and their words."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from saved_runs import item, text_of, write_run

from mm_spine.files import read_json_lines, write_json_lines
from mm_spine.reporting import result
from mm_spine.reporting.saved_run import read_run


def test_the_headline_by_hand(finished: Path) -> None:
    adapted, held_out = result.split_results(read_run(finished))
    greedy, pass_at_1, vote = held_out.measures.values()
    assert (greedy.before.value, greedy.after.value, greedy.gain.value) == (0.5, 1.0, 0.5)  # type: ignore[union-attr]
    assert (pass_at_1.before.value, pass_at_1.after.value) == (0.375, 1.0)  # type: ignore[union-attr]
    assert (vote.name, vote.before.value, vote.after.value) == ("maj@4", 0.5, 1.0)  # type: ignore[union-attr]
    # Adapted, greedy after 1 0 1 0 and the vote before 0 1 1 0; held out, 1 1 and 0 1.
    assert adapted.over_vote is not None and adapted.over_vote.value == 0.0
    assert held_out.over_vote is not None and held_out.over_vote.value == 0.5
    assert (adapted.questions, adapted.labelled) == (4, 4)


def test_a_loss_is_called_a_loss(tmp_path: Path) -> None:
    before = [item(f"q{i}", True, "1111") for i in range(9)]
    after = [item(f"q{i}", i == 0, "2222") for i in range(9)]
    text = text_of(write_run(tmp_path / "run", before, after))
    assert "-88.9 points" in text and "a loss" in text


def test_shares_are_of_the_questions_with_a_gold_answer(tmp_path: Path) -> None:
    before = [item("a", False, "1222"), item("b", None, "1112"), item("c", None, "1112")]
    after = [item("a", True, "1112"), item("b", None, "1112"), item("c", None, "1112")]
    text = text_of(write_run(tmp_path / "run", before, after))
    assert "right on 100.0 % of 1 questions with a gold answer" in text and "of 3 questions" not in text


def test_answers_that_are_partly_right_are_scored_not_counted(finished: Path, copy: Path) -> None:
    assert "is right on" in text_of(finished)
    for when in ("before", "after"):
        path = copy / "evaluation" / f"{when}.jsonl"
        rows = [{**row, "greedy": {"score": 0.3, "correct": False, "why": ""}} for row in read_json_lines(path)]
        write_json_lines(path, rows)
    text = text_of(copy)
    assert "One greedy answer scores 50.0 % over 4 questions" in text and "is right on" not in text


def test_few_questions_are_said_to_be_few(tmp_path: Path, finished: Path) -> None:
    many = [item(f"q{i}", True, "1111") for i in range(20)]
    assert "fewer than 20 questions" in text_of(finished)
    assert "fewer than 20 questions" not in text_of(write_run(tmp_path / "run", many, many))


def test_what_shows_a_collapse_stands_there_without_labels(tmp_path: Path) -> None:
    rows = [item("a", None, "1222"), item("b", None, "1112")]
    text = text_of(write_run(tmp_path / "run", rows, rows))
    assert "without an answer 0.0 % 0.0 %" in text and "mean length, tokens 3.0 3.0" in text
    assert "mean entropy, nats 0.500 0.500" in text and "95 % interval" not in text


def test_evaluations_of_other_questions_have_no_differences_and_say_so(copy: Path) -> None:
    path = copy / "evaluation" / "after.jsonl"
    write_json_lines(path, read_json_lines(path)[1:])
    assert "No differences can be given: before.jsonl has 6 questions and after.jsonl 5" in text_of(copy)


def test_a_score_that_is_no_number_is_not_shown(copy: Path) -> None:
    path = copy / "evaluation" / "after.jsonl"
    path.write_text(path.read_text().replace('"score": 1.0', '"score": NaN', 1))
    text = text_of(copy)
    assert "its greedy is no number" in text and not re.search(r"\bnan\b", text)


def test_pass_at_k_of_a_run_by_hand(finished: Path) -> None:
    adapted, held_out = result.split_results(read_run(finished))
    found = [(row.k, row.before, row.after, row.gain.value) for row in held_out.pass_at_k if row.gain]
    assert found == [(1, 0.375, 1.0, 0.625), (2, pytest.approx(2 / 3), 1.0, pytest.approx(1 / 3)), (4, 1.0, 1.0, 0.0)]
    assert adapted.pass_at_k_chart is not None and adapted.pass_at_k_chart.series[1].label == "after"
    # a 1 b 3 c 4 d 0 right of 4 before, a 3 b 1 c 4 d 0 after.
    before, after = (line.y for line in adapted.pass_at_k_chart.series)
    assert before == after == pytest.approx(((1 / 4 + 3 / 4 + 1) / 4, (1 / 2 + 1 + 1) / 4, (3 / 4 + 1 + 1) / 4, 3 / 4))


def test_what_was_learnt_is_said_and_shown_by_the_vote_s_share(finished: Path, tmp_path: Path) -> None:
    text = text_of(finished)
    assert (
        "Of 4 greedy answers: 1 learnt (wrong before, right after; mean vote share at the start 75.0 %), 1 corrupted "
        "(right before, wrong after; mean vote share at the start 75.0 %)." in text
    )
    # Share, questions, wrong before, learnt, corrupted.
    assert "50–75 % 2 1 1 1" in text and "100 % 2 1 0 0" in text
    same = [item("a", True, "1112"), item("b", False, "1222")]
    unchanged = text_of(write_run(tmp_path / "same", same, same))
    assert "Of 2 greedy answers" not in unchanged and "50–75 % 2 1 0 0" in unchanged


def test_without_labels_the_spread_of_answers_is_said(tmp_path: Path) -> None:
    before, after = [item("a", None, "1222")], [item("a", None, "2222")]
    answers = {"adapted": {"n": 1, "changed": 0, "vote_share_before": 0.75, "vote_share_after": 1.0}}
    text = text_of(write_run(tmp_path / "run", before, after, answers=answers))
    assert "2.00 distinct answers on average before, 1.00 after; their entropy went from 0.562 to 0.000 nats" in text
    assert "entropy of the answers, nats 0.562 0.000" in text and "distinct answers per question 2.00 1.00" in text
    assert "pass@k" not in text and "Learnt and corrupted" not in text
