"""The study on real weights: its cells, fair votes, where answers came from, and the figures of its page."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from mm_spine.benchmarks import resolve
from mm_spine.files import write_json, write_json_lines
from mm_spine.types import AnswerSpec

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts" / "study"))

import real_cells
import real_page
from real_cells import RealCell
from real_start import Start, fair_vote, source, winner

# --- The cells ----------------------------------------------------------------------------------------------------


def test_the_cells_are_seed_by_seed_with_the_start_first() -> None:
    names = [cell.name for cell in real_cells.real_cells()]
    assert len(names) == len(set(names)) == 3 * 5 * 7 + 5 * 6 + 2 * 2 * 5 + 5
    assert names[:3] == ["capitals/none/seed_0", "capitals/ttrl/seed_0", "capitals/spine/seed_0"]
    assert names[7] == "capitals/none/seed_1" and names[-1] == "flags/ettrl/seed_4"
    assert {cell.needs for cell in real_cells.real_cells() if cell.group == "rate-x25"} == {
        (f"capitals/none/seed_{seed}",) for seed in range(5)
    }


def test_a_cell_has_the_settings_that_it_is_named_for(tmp_path: Path) -> None:
    default = RealCell("capitals", "capitals", "spine", 3).config(tmp_path)
    assert (default.method.name, default.seed, default.guard.act, default.evaluation.before) == (
        "spine", 3, "warn", None,
    )  # fmt: skip
    assert default.sampling.temperature == default.evaluation.temperature == 0.7
    rated = RealCell("rate-x5", "capitals", "ttrl", 0, 5).config(tmp_path)
    assert rated.optim.lr == pytest.approx(5 * default.optim.lr)
    assert RealCell("flags", "flags", "spine", 0).config(tmp_path).model.path == str(real_cells.SEEING)
    guarded = RealCell("guarded", "capitals", "ttrl", 1)
    assert guarded.config(tmp_path).guard.act == "stop"
    assert guarded.needs == ("capitals/none/seed_1", "capitals/ttrl/seed_1")
    votes = RealCell("votes", "capitals", "none", 1).config(tmp_path)
    assert votes.evaluation.samples == 64 and default.evaluation.samples == 8
    write_json(tmp_path / "capitals/none/seed_3" / "summary.json", {})
    taken = RealCell("capitals", "capitals", "spine", 3).config(tmp_path)
    assert taken.evaluation.before == tmp_path / "capitals/none/seed_3"


# --- The start ----------------------------------------------------------------------------------------------------


def line(split: str, name: str, greedy: str, right: bool, classes: Sequence[str | None], gold: str) -> dict[str, Any]:
    """A question's line of an evaluation, its samples right where their class is `gold`."""
    verdicts = [{"score": float(c == gold), "correct": c == gold, "why": ""} for c in classes]
    answers = [None if c is None else {"text": c, "key": c} for c in classes]
    counts = {c: classes.count(c) for c in classes if c is not None}
    best = max(counts, key=lambda c: counts[c])
    return {
        "id": name, "split": split, "greedy_text": greedy,
        "greedy": {"score": float(right), "correct": right, "why": ""},
        "texts": list(classes), "answers": answers, "classes": list(classes), "verdicts": verdicts,
        "vote": {"text": best, "key": best}, "vote_score": float(best == gold), "lengths": [4] * len(classes),
        "entropies": [0.5] * len(classes), "unparsed": [c is None for c in classes],
    }  # fmt: skip


def test_a_fair_vote_is_the_mean_over_random_subsets() -> None:
    asked = {"q": line("adapted", "q", "", False, ["rome", "rome", "rome", "bari", None], "rome")}
    start = Start(0, {"adapted": asked})
    assert fair_vote(start, "adapted", 5) == 1.0 and fair_vote(start, "held_out", 5) is None
    # One sample is right three times in five: 200 draws have a standard error of 0.035.
    assert fair_vote(start, "adapted", 1) == pytest.approx(0.6, abs=0.12)
    assert winner("q", [3, 4], ["rome", "rome", "rome", "bari", None]) == "bari"
    assert winner("q", [4], ["rome", "rome", "rome", "bari", None]) is None


@pytest.mark.parametrize(
    ("greedy", "classes", "found"),
    [
        ("Italy is a country. Its capital, Rome, is old.", ["bari"], "form"),
        ("", ["bari"], "form"),
        ("The capital of Italy is Bari.", ["bari", "rome"], "known"),
        ("The capital of Italy is Bari.", ["bari", "milan"], "new"),
    ],
)
def test_what_kept_the_start_from_being_right(greedy: str, classes: list[str], found: str) -> None:
    spec = AnswerSpec(kind="text", question="What is the capital of Italy?")
    assert source(line("adapted", "q", greedy, False, classes, "rome"), spec, ("Rome",)) == found


# --- The page -----------------------------------------------------------------------------------------------------


QUESTIONS = 32
"""The least over which the guard judges."""


def finish(output: Path, cell: RealCell, after: int, guard: Mapping[str, Any]) -> None:
    """A finished cell: none of the questions is right before, `after` halves of the adapted ones are after."""
    folder, benchmark = output / cell.name, resolve("capitals")
    lines: dict[str, list[dict[str, Any]]] = {"before": [], "after": []}
    for split, name in (("adapted", "adapt"), ("held_out", "held_out")):
        labelled = benchmark.load(name)
        for place, question in enumerate(labelled.questions[:QUESTIONS]):
            gold = labelled.key[question.id][0]
            right = split == "adapted" and place < after * QUESTIONS // 2
            samples = cell.config(output).evaluation.samples
            told = f"The capital is {gold}."
            lines["before"].append(
                line(split, question.id, "The capital is Atlantis.", False, ["atlantis"] * (samples - 1) + [gold], gold)
            )
            lines["after"].append(
                line(split, question.id, told if right else "The capital is Atlantis.", right,
                     [gold if right else "atlantis"] * samples, gold)
            )  # fmt: skip
    for when, each in lines.items():
        write_json_lines(folder / "evaluation" / f"{when}.jsonl", each)
    write_json(
        folder / "summary.json",
        {"benchmark": "capitals", "method": cell.label, "model": "m", "seed": cell.seed, "label_free": True,
         "guard": guard, "forecast": {"verdict": "neither"}},
    )  # fmt: skip
    write_json_lines(folder / "steps.jsonl", [{"step": 0, "majority_share": 0.25}, {"step": 1, "majority_share": 1.0}])
    write_json(folder / "environment.json", {"commit": "abc12345ff"})
    (folder / "config.yaml").write_text(yaml.safe_dump(cell.config(output).model_dump(mode="json")))


def test_the_page_says_what_the_cells_came_to(tmp_path: Path) -> None:
    calm = {"fired": False, "signal": None, "step": None}
    fired = {"fired": True, "signal": "spread", "step": 4}
    for seed in (0, 1):
        for label, after in (("none", 0), ("ttrl", 1), ("spine", 2)):
            finish(tmp_path, RealCell("capitals", "capitals", label, seed), after, calm)
        finish(tmp_path, RealCell("rate-x25", "capitals", "ttrl", seed, 25), 0, fired)
    finish(tmp_path, RealCell("votes", "capitals", "none", 0), 0, calm)
    finish(tmp_path, RealCell("guarded", "capitals", "ttrl", 0), 0, {**fired, "rolled_back_to": 0})
    text = real_page.write_page(tmp_path, tmp_path).read_text()
    # Of the 30 cells that the guard stops only the four of finished runs are known to be needed or not.
    assert "from 10 of 160 cells; commits of the runs (cells): `abc12345` (10)." in text
    assert "capitals/random-mask (5)" in text and "capitals/spine (3)" in text
    assert "| ttrl | greedy | +50.0 [+50.0, +50.0] |" in text and "| spine | greedy | +100.0 [+100.0, +100.0] |" in text
    assert "- The forecast from the votes of the start, by seeds: `neither` (2)." in text
    # Every greedy answer that became right is one that left the start's vote.
    assert "- Of 4 runs 0 ended with greedy answers more than 1 point below the start; " in text
    assert "Of the 4 others it would have stopped 4." in text
    assert "| ttrl | 0 | +50.0 | greedy | 0 | 0.0 → 50.0 | 0.0 → 0.0 | 0.0 → 0.0 | 0.0 → 0.0 |" in text
    assert "| spine | 1 | +100.0 | greedy | – | 0.0 → 100.0 | 0.0 → 0.0 | – | – |" in text
    assert "over the 1 of them of which both are known: +50.0 without the guard (worst +50.0), +0.0 with it" in text
    # The start's vote is wrong everywhere; one sample of 64 is right.
    assert "| Adapted questions | 0.0 | 0.0 | 50.0 | 100.0 |" in text
    assert "| spine | Adapted questions | 0.0 | 32.0 | 0.0 | 0.0 |" in text
    assert "| x1 | spine | 2 | +87.5 [+87.5, +87.5] | 0 | 100.0 | never |" in text
    assert "| x25 | ttrl | 2 | -12.5 [-12.5, -12.5] | 2 | 100.0 | spread at step 4, spread at step 4 |" in text
