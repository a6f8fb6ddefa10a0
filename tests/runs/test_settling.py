"""Votes that settle: what counts as a change, by hand; and runs that end so, resumed ones too."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lab import Interrupting, Lab, summary_of
from saved_runs import group, rollout

from mm_spine import files
from mm_spine.commands.adapt import print_summary
from mm_spine.config import ConfigError, GuardConfig
from mm_spine.reporting import curves
from mm_spine.reporting.headline import headline
from mm_spine.reporting.overview import badges
from mm_spine.reporting.saved_run import read_run
from mm_spine.runs import guard as guarding
from mm_spine.runs import run as running
from mm_spine.runs import settling
from mm_spine.runs.plan import check
from mm_spine.runs.run import run
from mm_spine.runs.settling import Compared, compare, settled, warn_of_few_repeats
from mm_spine.types import Answer, Group, StepReport, Vote

LIMITS = GuardConfig(settle=0.25, settle_over=8)


def voted(name: str, winner: str | None) -> Group:
    found = group(name, [rollout(name, i) for i in range(2)], [winner, winner])
    object.__setattr__(found, "vote", Vote(winner, 1.0, {}, 0.0, 2))
    object.__setattr__(found, "parsed", (None if winner is None else Answer(winner, winner),) * 2)
    return found


def step(number: int, groups: Sequence[Group]) -> Any:
    return SimpleNamespace(groups=groups, report=StepReport(number))


def test_a_vote_has_changed_where_it_means_something_else_than_the_last_one() -> None:
    last = {"a": Answer("1", "1"), "b": Answer("2", "2"), "c": None, "d": None, "e": Answer("4.0", "4")}
    groups = [voted("a", "1"), voted("b", "3"), voted("c", None), voted("d", "1"), voted("e", "4"), voted("new", "5")]
    found, votes = compare(step(7, groups), last)
    # b has another answer and d now has one; c has none again, e has the same in other words, and the last one is new.
    assert found == Compared(7, compared=5, changed=2)
    assert votes["b"] == Answer("3", "3") and votes["c"] is None and votes["new"] == Answer("5", "5")


@pytest.mark.parametrize(
    ("history", "done"),
    [
        ([(4, 0), (4, 2)], 2),  # 2 of 8 are at the limit
        ([(4, 0), (4, 3)], None),
        ([(4, 0), (3, 0)], None),  # too few were asked again
        ([(0, 0), (8, 2)], 2),
        ([(4, 4), (4, 2), (4, 0)], 3),  # only the newest count
        ([(4, 0), (0, 0), (4, 1), (4, 1)], 4),
        ([], None),
    ],
)
def test_settled_votes_are_few_changes_of_enough_votes(history: Sequence[tuple[int, int]], done: int | None) -> None:
    steps = [Compared(number, *counts) for number, counts in enumerate(history)]
    found = settled(steps, LIMITS)
    assert (None if found is None else found["step"]) == done
    assert settled(steps, GuardConfig(settle_over=8)) is None


def test_the_record_says_what_was_counted() -> None:
    found = settled([Compared(0, 0, 0), Compared(1, 4, 0), Compared(2, 6, 1)], LIMITS)
    assert found == {
        "step": 3, "compared": 10, "changed": 1, "limit": 0.25,
        "sentence": "The votes have settled after step 3: of the newest 10 on questions that were asked before, "
        "1 changed (10.0%, limit 25.0%).",
    }  # fmt: skip


SETTLES: Mapping[str, Any] = {
    "method": "ttrl",
    "optim": {"steps": 8},
    "guard": {"act": "off", "settle": 0.99, "settle_over": 9},
    "checkpoint": {"every": 1},
}


def test_a_run_whose_votes_have_settled_ends_with_the_weights_of_its_last_step(
    lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fixed = run(lab.config(SETTLES, {"guard": {"settle": None}}), tmp_path / "fixed")
    ended = run(lab.config(SETTLES), tmp_path / "run")
    assert fixed is not None and ended is not None
    assert (fixed["stopped_by"], fixed["steps"], fixed["settled"]) == ("steps", 8, None)
    assert not (tmp_path / "fixed/votes.jsonl").exists()
    lines = files.read_json_lines(tmp_path / "run/votes.jsonl")
    done, seen = len(lines), set[str]()
    for line in lines:
        assert line["compared"] == len(seen & line["votes"].keys())
        seen |= line["votes"].keys()
    # It ends with the first step at which nine questions were asked again.
    compared = [line["compared"] for line in lines]
    assert 2 < done < 8 and sum(compared) >= 9 > sum(compared[:-1])
    assert ended["stopped_by"] == "settled" and ended["steps"] == done and ended["guard"] is None
    assert ended["settled"] is not None and ended["settled"]["step"] == done
    # Up to there it is the run of a fixed number of steps, and nothing is taken back.
    steps = (tmp_path / "fixed/steps.jsonl").read_bytes().splitlines()
    assert (tmp_path / "run/steps.jsonl").read_bytes().splitlines() == steps[:done]
    assert (tmp_path / f"run/checkpoints/step_{done:06d}").is_dir()
    print_summary(tmp_path / "run", ended)
    assert f"The votes have settled after step {done}: " in capsys.readouterr().out
    saved = read_run(tmp_path / "run")
    assert ended["settled"]["sentence"] in headline(saved, [], "name").notes
    assert (f"the votes settled after {done} steps", True) in [tuple(badge) for badge in badges(saved)]
    assert all(chart.mark == curves.Mark(done, "votes settled") for chart in curves.charts(saved))


@pytest.mark.parametrize("interrupted", [1, 2])
def test_a_resumed_run_settles_where_an_uninterrupted_one_does(lab: Lab, tmp_path: Path, interrupted: int) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    whole = run(lab.config(SETTLES), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(lab.config(SETTLES), tmp_path / "cut", listener=Interrupting(interrupted, interrupt))
    assert_same(whole, run(lab.config(SETTLES), tmp_path / "cut", resume=True), tmp_path)


def test_a_settled_run_is_resumed_at_its_last_evaluation(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(lab.config(SETTLES), tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(running.RunFolder, "save_adapted", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(lab.config(SETTLES), tmp_path / "cut")
    assert_same(whole, run(lab.config(SETTLES), tmp_path / "cut", resume=True), tmp_path)


def assert_same(whole: Any, resumed: Any, folder: Path) -> None:
    assert whole["stopped_by"] == resumed["stopped_by"] == "settled"
    assert whole["settled"] == resumed["settled"] == summary_of(folder / "cut")["settled"]
    for name in ("steps.jsonl", "votes.jsonl", "evaluation/after.jsonl", "adapted/model.safetensors"):
        assert (folder / "whole" / name).read_bytes() == (folder / "cut" / name).read_bytes(), name


def test_the_guard_comes_before_settled_votes(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that gets worse in the step in which its votes settle is taken back."""

    def lost(record: Any, start: Any) -> guarding.Signals:
        step = record.report.step
        return guarding.Signals(step, questions=32, sure=4, kept=4 * (step < 2), spread=1.0, unparsed=0.0, length=1.0)

    monkeypatch.setattr(guarding, "measure", lost)
    monkeypatch.setattr(settling, "same_vote", lambda *_: True)
    limits = {"act": "stop", "sure_votes": 4, "every": 1, "settle_over": 4}
    ended = run(lab.config(SETTLES, {"guard": limits}), tmp_path / "run")
    assert ended is not None and ended["guard"] is not None and ended["settled"] is not None
    assert ended["guard"]["step"] == ended["settled"]["step"] == 3 and ended["stopped_by"] == "guard"


def test_what_cannot_settle_is_said(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConfigError, match="guard.settle is for scope=dataset"):
        check(lab.config(SETTLES, {"scope": "question"}))
    config = lab.config(SETTLES)
    with caplog.at_level(logging.WARNING):
        # 8 steps of 4 questions.
        warn_of_few_repeats(config, 23)
        assert not caplog.text
        warn_of_few_repeats(config, 24)
    assert "8 steps ask 8 questions again, and 9 are needed; nothing settles" in caplog.text
