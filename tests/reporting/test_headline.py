"""The head of a report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from saved_runs import item, text_of, write_run

from mm_spine.reporting.headline import Headline, headline
from mm_spine.reporting.result import split_results
from mm_spine.reporting.saved_run import read_run


def head(run: Path) -> Headline:
    saved = read_run(run)
    return headline(saved, split_results(saved), "spine on digits")


def result(tmp_path: Path, before: str, votes: str, after: str) -> Headline:
    """Questions with these greedy answers before and after, and with these votes of the starting model; 1 is right."""
    old = [item(f"q{i}", greedy == "1", vote * 4) for i, (greedy, vote) in enumerate(zip(before, votes, strict=True))]
    new = [item(f"q{i}", greedy == "1", "1222") for i, greedy in enumerate(after)]
    return head(write_run(tmp_path / "run", old, new))


def test_the_result_is_the_title(tmp_path: Path) -> None:
    found = result(tmp_path, "1" * 10 + "2" * 20, "1" * 20 + "2" * 10, "1" * 20 + "2" * 10)
    assert [(each.figure, each.words) for each in found.figures] == [
        ("+33.3 points", "over one greedy answer"), ("+0.0 points", "over the free vote (maj@4)"),
    ]  # fmt: skip
    assert found.title == "+33.3 points over one greedy answer, +0.0 points over the free vote (maj@4)"
    assert found.figures[0].detail.startswith("33.3 → 66.7 % [")
    assert found.of == "30 adapted questions"


@pytest.mark.parametrize(
    ("before", "votes", "after", "verdict"),
    [
        ("2" * 30, "2" * 30, "1" * 30, "Adapting helped: one greedy answer is better than before, and better than"),
        ("2" * 30, "1" * 30, "1" * 30, "Adapting helped: one greedy answer is better than before, but not shown"),
        (
            "2" * 30,
            "1" * 30,
            "1" * 15 + "2" * 15,
            "Adapting helped: one greedy answer is better than before, but worse",
        ),
        ("1" * 30, "1" * 30, "1" * 30, "No effect on one greedy answer is shown"),
        ("1" * 30, "1" * 30, "2" * 30, "Adapting did harm: one greedy answer is worse than before, and worse than"),
    ],
)
def test_the_verdict_says_what_the_intervals_say(
    tmp_path: Path, before: str, votes: str, after: str, verdict: str
) -> None:
    assert result(tmp_path, before, votes, after).verdict.startswith(verdict)


def blind(tmp_path: Path, **summary: Any) -> Path:
    rows = [item("a", None, "1222"), item("b", None, "1112")]
    answers = {"adapted": {"n": 2, "changed": 1, "vote_share_before": 0.625, "vote_share_after": 0.75}}
    return write_run(tmp_path / "run", rows, rows, answers=answers, **summary)


def test_without_answers_it_says_what_changed_and_how_sure_the_votes_became(tmp_path: Path) -> None:
    found = head(blind(tmp_path))
    assert [each.figure for each in found.figures] == ["1 of 2", "62.5 → 75.0 %"]
    assert found.verdict == "No gold answers, so whether the answers got better is not known."
    assert found.notes == ()


def test_forecast_and_guard_are_said_where_there_are_any(tmp_path: Path) -> None:
    guard = {"fired": True, "step": 6, "signal": "length", "value": 3.25, "limit": 8.0, "rolled_back_to": 4}
    run = blind(
        tmp_path,
        forecast={"verdict": "vote", "sentences": ["Without labels.", "Forecast: use the vote instead."]},
        guard=guard,
    )
    assert head(run).notes == (
        "Before the first step. Forecast: use the vote instead.",
        "The guard fired at step 6: the length of responses, as a multiple of the start's, was 3.25, "
        "with a limit of 8. The weights are those after step 4.",
    )
    text = text_of(run)
    assert "use the vote instead." in text and "! the guard fired".removeprefix("! ") in text


def test_a_guard_that_went_back_to_the_start_and_one_that_did_not_fire(tmp_path: Path) -> None:
    assert head(blind(tmp_path / "a", guard={"fired": True, "rolled_back_to": 0})).notes == (
        "The guard fired. The weights are those of the start.",
    )
    warned = blind(tmp_path / "w", guard={"fired": True, "step": 3, "rolled_back_to": None})
    assert head(warned).notes == ("The guard fired at step 3. It only warned.",)
    quiet = blind(tmp_path / "b", guard={"fired": False, "step": None})
    assert head(quiet).notes == () and "the guard did not fire" in text_of(quiet)
    unseen = blind(tmp_path / "c", guard={"fired": False, "step": None, "judged": False})
    assert "the guard could not judge" in text_of(unseen)


def test_runs_without_a_result_have_a_title(tmp_path: Path) -> None:
    rows = [item("a", True, "1112"), item("b", False, "1222")]
    assert head(write_run(tmp_path / "none", rows, rows, steps=0)).title == "No step was made: spine on digits"
    run = write_run(tmp_path / "begun", rows, rows)
    (run / "summary.json").unlink()
    assert head(run).title == "Unfinished: spine on digits"
