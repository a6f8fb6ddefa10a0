"""The questions that changed, as the page shows them."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
from saved_runs import group, item, rollout, text_of, undrawn, write_run, write_step

from mm_spine.files import read_json_lines, write_json_lines
from mm_spine.reporting import changed_questions, page


def test_a_run_without_labels_shows_the_votes_that_moved(tmp_path: Path) -> None:
    before = [item("a", None, "1222"), item("b", None, "1112")]
    after = [item("a", None, "1112"), item("b", None, "1112")]
    text = text_of(write_run(tmp_path / "run", before, after))
    assert "No gold answers, so whether the answers got better is not known" in text
    assert "Another vote, no gold answer: 1" in text and "vote 2 (3 of 4) → 1 (3 of 4)" in text


def test_at_most_forty_questions_of_a_direction_are_shown(tmp_path: Path) -> None:
    before, after = ([item(f"q{i:02}", right, "12") for i in range(50)] for right in (False, True))
    html = undrawn(write_run(tmp_path / "run", before, after))
    assert html.count('<details class="question">') == 40
    assert "Wrong before, right after: 50" in html and "the first 40 are shown" in html


def test_what_does_not_fit_is_left_out_and_said(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changed_questions, "IMAGE_BYTES", 10)
    monkeypatch.setattr(changed_questions, "RESPONSE_BYTES", 10)
    text = text_of(finished)
    assert "Images of 3 questions are left out" in text and "Responses of 2 questions are left out" in text


def test_branches_of_a_tree_are_shown_as_such(copy: Path) -> None:
    shutil.rmtree(copy / "rollouts")
    root, leaf = rollout("a", 0), dataclasses.replace(rollout("a", 1), parent=0, fork_at=2)
    write_step(copy, 0, [group("a", [root, leaf], ["1", "2"])])
    assert "Tokens that branches of a tree share are counted in each" in text_of(copy)
    html = undrawn(copy)
    (shown,) = re.findall(r'<script type="application/json">(\[.*?\])</script>', html, flags=re.S)
    assert [(row["parent"], row["fork_at"]) for row in json.loads(shown)] == [(None, None), (0, 2)]


def test_answers_beyond_the_first_are_counted_together(tmp_path: Path) -> None:
    before, after = item("a", False, "123456789"), item("a", True, "111111111")
    text = text_of(write_run(tmp_path / "run", [before], [after]))
    assert "4 other answers 4 0" in text


def test_text_that_turns_the_line_stays_in_its_place(copy: Path) -> None:
    path = copy / "evaluation" / "after.jsonl"
    path.write_text(path.read_text().replace('"vote": {"text": "1"', '"vote": {"text": "\u202e1"'))
    page_text = undrawn(copy)
    assert "<bdi>\\u202e1 (3 of 4)</bdi>" in page_text and "\u202e" not in page_text
    assert page._visible("a\u200b \u202e") == "aU+200B␣U+202E"


def test_long_answers_and_verdicts_are_shortened(copy: Path) -> None:
    long = "x" * 100_000
    path = copy / "evaluation" / "after.jsonl"
    rows = read_json_lines(path)
    write_json_lines(path, [{**row, "greedy_text": long, "greedy": {**row["greedy"], "why": long}} for row in rows])
    write_step(copy, 0, [group("a", [rollout("a", 0)], [long], long)])
    assert len(undrawn(copy)) < 150_000
