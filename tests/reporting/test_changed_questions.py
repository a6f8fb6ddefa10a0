"""The questions that changed, as the page shows them."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
from saved_runs import group, item, rollout, text_of, undrawn, write_run, write_step

from mm_spine.files import read_json_lines, write_csv, write_json_lines
from mm_spine.reporting import changed_questions, page


def test_a_run_without_labels_shows_the_votes_that_moved(tmp_path: Path) -> None:
    before = [item("a", None, "1222"), item("b", None, "1112")]
    after = [item("a", None, "1112"), item("b", None, "1112")]
    text = text_of(write_run(tmp_path / "run", before, after))
    assert "No gold answers, so whether the answers got better is not known" in text
    assert (
        "Another answer or vote, no gold answer, adapted questions: 1" in text
        and "vote 2 (3 of 4) → 1 (3 of 4)" in text
    )


def test_all_questions_are_on_the_page_forty_at_a_time(tmp_path: Path) -> None:
    before, after = ([item(f"q{i:02}", right, "12") for i in range(90)] for right in (False, True))
    html = undrawn(write_run(tmp_path / "run", before, after))
    assert html.count('<details class="question">') == 90
    at_first, *waiting = html[html.index("Learnt: wrong before, right after") :].split("<template>")
    assert [part.count('<details class="question">') for part in (at_first, *waiting)] == [40, 40, 10]
    assert "Learnt: wrong before, right after, adapted questions: 90" in html and 'data-total="90"' in html


def test_of_more_than_the_page_holds_those_that_changed_most_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [item("small", False, "1222"), item("large", False, "2222"), item("middle", False, "1222")]
    after = [item("small", True, "1122"), item("large", True, "1111"), item("middle", True, "1112")]
    folder = write_run(tmp_path / "run", before, after)
    assert re.findall(r'<span class="id">(\w+)</span>', undrawn(folder)) == ["large", "middle", "small"]
    monkeypatch.setattr(changed_questions, "ROW_BYTES", 2 * changed_questions.MARKUP_BYTES + 100)
    html = undrawn(folder)
    assert re.findall(r'<span class="id">(\w+)</span>', html) == ["large", "middle"]
    assert "the page holds 2 of them, answers.csv and evaluation/ have all" in html


def test_splits_stand_apart_and_the_right_answer_is_in_the_row(finished: Path, copy: Path) -> None:
    text = text_of(finished)
    for title in (
        "Learnt: wrong before, right after, adapted",
        "Learnt: wrong before, right after, held-out",
        "Corrupted: right before, wrong",
    ):
        assert f"{title}" in text
    # Without answers.csv the right answer is that of a sample.
    assert "right: 1" in text
    write_answers(copy, [answer("a", "4", "5"), answer("b", "6", "7"), answer("e", "8", "9", "held_out")])
    text = text_of(copy)
    assert "4 → 5 right: 5" in text and "6 → 7 right: 6" in text and "8 → 9 right: 9" in text


def answer(name: str, old: str, new: str, split: str = "adapted") -> dict[str, object]:
    changed = "yes" if old != new else "no"
    return {
        "id": name, "split": split, "question": f"What is {name}?", "answer_before": old, "answer_after": new,
        "vote_before": old, "vote_after": new, "vote_share_before": 0.5, "vote_share_after": 1.0, "changed": changed,
    }  # fmt: skip


def write_answers(run: Path, rows: list[dict[str, object]]) -> None:
    write_csv(run / "answers.csv", rows)


def test_a_run_without_labels_lists_the_answers_that_changed(tmp_path: Path) -> None:
    same = [item(name, None, "1112") for name in "abc"]
    folder = write_run(tmp_path / "run", same, same)
    write_answers(folder, [answer("a", "4", "5"), answer("b", "6", "6"), answer("c", "", "7")])
    text = text_of(folder)
    assert "no gold answer, adapted questions: 2" in text
    assert "4 → 5" in text and "none → 7" in text and "What is c?" in text and "What is b?" not in text


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
