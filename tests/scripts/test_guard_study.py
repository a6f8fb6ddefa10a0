"""The cells of the guard's study, what is skipped and redone, and that its pages compute what they say."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from mm_spine.config import RunConfig
from mm_spine.files import write_json
from mm_spine.intervals import Interval

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts" / "study"))  # spawned workers inherit it

import cells
import forecasts
import guard_cells
import guards
import run_cells
from forecasts import Outcome
from guard_cells import GuardCell
from guards import Pair, Setting

# --- The cells ----------------------------------------------------------------------------------------------------


def test_the_cells_are_every_start_rate_method_and_seed_with_the_short_runs_first() -> None:
    names = [cell.name for cell in guard_cells.guard_cells()]
    expected = {
        f"{act}/{start}_{rate}_{steps}_{method}_{seed}"
        for act, steps, seed, start, method, rate in itertools.product(
            ("warn", "stop"), (12, 120), (2, 3, 4, 5), ("digits_model", "direct_heavy_model", "clean_model"),
            ("ttrl", "spine"), ("2.0e-4", "8.0e-4", "2.0e-3"),
        )
    }  # fmt: skip
    runs = [name for name in names if name.startswith(("warn", "stop"))]
    assert set(runs) == expected and len(runs) == len(expected) == 288
    assert names[:3] == [
        "before_digits_model_2", "warn/digits_model_2.0e-4_12_ttrl_2", "stop/digits_model_2.0e-4_12_ttrl_2",
    ]  # fmt: skip
    assert len(names) == len(set(names)) == 288 + 12 + 24
    assert names.index("warn/clean_model_2.0e-3_12_spine_5") < names.index("warn/digits_model_2.0e-4_120_ttrl_2")
    rate = cells.digits_config().optim.lr
    assert [float(each) for each in guard_cells.RATES] == pytest.approx([rate, 4 * rate, 10 * rate])


def test_a_cell_has_the_settings_that_it_is_named_for(tmp_path: Path) -> None:
    config = GuardCell("warn", "clean_model", 4, "8.0e-4", 120, "spine").config(tmp_path)
    assert (config.method.name, config.seed, config.optim.lr, config.optim.steps) == ("spine", 4, 8e-4, 120)
    assert (config.guard.act, config.guard.settle) == ("warn", None)
    assert config.model.path == str(tmp_path / "clean_model")
    assert config.evaluation.before == tmp_path / "before_clean_model_4"
    assert (config.threads, config.evaluation.held_out, config.reporting.rollouts) == (1, False, False)
    stop, settle = (GuardCell(act, "digits_model", 2, steps=12, method="ttrl").config(tmp_path)  # type: ignore[arg-type]
                    for act in ("stop", "settle"))  # fmt: skip
    assert stop.guard == RunConfig().guard and stop.model.path is None
    assert settle.guard.settle == 0.01 and settle.guard.act == "stop"
    before = GuardCell("before", "digits_model", 2).config(tmp_path)
    assert before.method.name == "none" and before.evaluation.before is None


def finish(output: Path, cell: GuardCell, **summary: Any) -> None:
    write_json(output / cell.name / "summary.json", summary)


def test_finished_cells_are_skipped_and_runs_that_the_guard_would_not_stop(tmp_path: Path) -> None:
    before, warn, stop = guard_cells.guard_cells()[:3]
    chosen = [before, warn, stop]
    assert [task.name for task in guard_cells.tasks(chosen, tmp_path)] == [before.name, warn.name, stop.name]
    finish(tmp_path, before)
    finish(tmp_path, warn, guard={"fired": True})
    (tmp_path / stop.name).mkdir(parents=True)  # half-written
    assert [task.name for task in guard_cells.tasks(chosen, tmp_path)] == [stop.name]
    finish(tmp_path, warn, guard={"fired": False})
    assert guard_cells.tasks(chosen, tmp_path) == []
    # The other starts are built first, once.
    clean = [cell for cell in guard_cells.guard_cells() if cell.start == "clean_model"][:4]
    assert [task.name for task in guard_cells.tasks(clean, tmp_path)] == ["clean_model", *(cell.name for cell in clean)]
    (tmp_path / "clean_model").mkdir()
    assert guard_cells.tasks(clean, tmp_path)[0].name == clean[0].name
    assert clean[2].act == "stop" and clean[2].needs == ("clean_model", clean[0].name, clean[1].name)
    assert set(cells.RECIPES) == {"clean_model", "direct_heavy_model"}


def test_a_run_stops_only_where_the_guard_fired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, warn, stop = guard_cells.guard_cells()[:3]
    done: list[str] = []
    monkeypatch.setattr(guard_cells, "perform", lambda task, output: done.append(task.name))
    tasks = {cell.act: run_cells.Task(cell.name, cell.needs, cell) for cell in (before, warn, stop)}
    assert guard_cells.do(tasks["warn"], tmp_path) == "before_digits_model_2 is not finished"
    finish(tmp_path, before)
    assert guard_cells.do(tasks["stop"], tmp_path) == "warn/digits_model_2.0e-4_12_ttrl_2 is not finished"
    finish(tmp_path, warn, guard={"fired": False})
    assert guard_cells.do(tasks["stop"], tmp_path) is None and done == []
    finish(tmp_path, warn, guard={"fired": True})
    assert [guard_cells.do(tasks[act], tmp_path) for act in ("before", "warn", "stop")] == [None] * 3
    assert done == [before.name, warn.name, stop.name]


def test_the_card_of_a_start_without_a_second_habit_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import source_card
    import source_recipe

    monkeypatch.setattr(source_card, "dpkg", lambda *arguments: "1.0")
    figures = source_card.Figures(512, 16, *[0.5] * (len(fields(source_card.Figures)) - 2))
    stages = dict.fromkeys(("vision", "reasoning", "habits"), 0.9)
    cards = {}
    for name, recipe in source_recipe.RECIPES.items():
        (tmp_path / name).mkdir()
        source_card.write_card(tmp_path / name, recipe, stages, figures, 60.0)
        cards[name] = (tmp_path / name / "README.md").read_text()
    assert "40% of the targets direct" in cards["two-habits"] and "80% of the targets" in cards["direct-heavy"]
    assert "no second habit is taught" in cards["clean"] and "targets direct" not in cards["clean"]
    clean = source_recipe.RECIPES["clean"]
    assert clean.habits.direct == 0.0 and clean.reasoning == source_recipe.Config().reasoning


# --- The pages ----------------------------------------------------------------------------------------------------

START = {"greedy": 0.5, "pass_at_1": 0.5, "maj_at_n": 0.6}


def write_run(
    output: Path, cell: GuardCell, pass_at_1: float, *, fired: bool = False, verdict: str = "adapt", gain: float = 0.1,
    stopped_by: str = "steps", steps: int = 120, tokens: int = 1000,
) -> None:  # fmt: skip
    """A finished run that starts at 50 % and ends at `pass_at_1`; its greedy answers end two points above that."""
    after = {"greedy": pass_at_1 + 0.02, "pass_at_1": pass_at_1}
    forecast = {"gain": gain, "gain_ci95": [gain - 0.05, gain + 0.05], "verdict": verdict}
    settled = {"limit": 0.01} if stopped_by == "settled" else None
    finish(
        output, cell, model=cell.start, method=cell.method, seed=cell.seed, before=START, after=after, steps=steps,
        guard={"fired": fired}, forecast=forecast, stopped_by=stopped_by, settled=settled, tokens={"sampled": tokens},
    )  # fmt: skip
    write_json(output / cell.name / "environment.json", {"commit": "abcdef0123"})
    config = {"optim": {"lr": float(cell.rate), "steps": cell.steps}}
    (output / cell.name / "config.yaml").write_text(yaml.safe_dump(config))


def cell(act: Any, seed: int, rate: str = "2.0e-4", steps: int = 12, start: str = "digits_model") -> GuardCell:
    return GuardCell(act, start, seed, rate, steps, "ttrl")


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """At the first rate two seeds gain and one of these is stopped too early; at the second two lose, one unnoticed."""
    write_run(tmp_path, cell("warn", 2), 0.60)
    write_run(tmp_path, cell("warn", 3), 0.70, fired=True)
    write_run(tmp_path, cell("stop", 3), 0.55, fired=True)
    write_run(tmp_path, cell("warn", 2, "8.0e-4"), 0.20, fired=True, verdict="vote", gain=0.0)
    write_run(tmp_path, cell("stop", 2, "8.0e-4"), 0.50, fired=True, verdict="vote", gain=0.0)
    write_run(tmp_path, cell("warn", 3, "8.0e-4"), 0.40, verdict="vote", gain=0.0)
    return tmp_path


def test_the_stopping_run_of_a_later_folder_counts_even_where_the_warning_one_was_calm(
    study: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    later = tmp_path_factory.mktemp("later")
    write_run(later, cell("stop", 3, "8.0e-4"), 0.49, fired=True)
    found, alone = guards.pairs_by_setting(*(guards.finished([study, later], kind)[0] for kind in ("warn", "stop")))
    lost = found[Setting("digits_model", 8e-4, 12, "ttrl")]
    assert not alone and [(pair.seed, pair.fired) for pair in lost] == [(2, True), (3, True)]
    assert [pair.with_guard for pair in lost] == pytest.approx([0.0, -1.0])


def test_the_demands_are_checked_and_false_alarms_and_misses_counted(study: Path) -> None:
    text = "\n".join(guards.page([study]))
    # Without the guard -30 and -10, with it 0 and -10.
    assert "below its start: NOT met. Of 2 cells 1 end below that, without the guard 1." in text
    assert "\n   - digits_model, lr 0.0008, 12 steps, ttrl: -5.0 [-68.5, +58.5], 2 seeds" in text
    assert "at most one point: NOT met. 2 runs gained; the guard cost +7.5 points on average" in text
    assert "more than one point in 1, at most +15.0.\n   - digits_model, lr 0.0002, 12 steps, ttrl: +15.0" in text
    assert "Misses: of 2 runs that lost without the guard it did not stop 1." in text
    assert "False alarms: of 2 others it stopped 1. Too late: 0" in text
    assert (
        "| digits_model | 0.0002 | `ttrl` | 2 | 0 | 1 | 50.0 → 65.0 / 57.5 | +15.0 [-48.5, +78.5] | "
        "+7.5 [-24.3, +39.3] | 50.0 → 67.0 / 59.5 |"
    ) in text
    assert "- 12 steps: 4 of 72 runs are finished. Of 18 cells 0 have all 4 seeds, 16 have none." in text
    # Start, rate and method are words, aligned to the left; the other columns are figures.
    assert f"\n|{' --- |' * 3}{' ---: |' * 7}\n" in text
    assert "- 120 steps: 0 of 72 runs" in text and "Commit of the runs: `abcdef01`. Seeds: 2, 3." in text


def test_demands_that_are_met_and_runs_that_are_left_out(tmp_path: Path) -> None:
    write_run(tmp_path, cell("warn", 2), 0.60)
    write_run(tmp_path, cell("warn", 3), 0.30, fired=True)
    text = "\n".join(guards.page([tmp_path]))
    assert "below its start: met." in text and "at most one point: met. 1 run gained; the guard cost +0.0" in text
    assert "is not finished: digits_model, lr 0.0002, 12 steps, ttrl, seed 3." in text
    assert "| 1 | 0 | 0 | 50.0 → 60.0 / 60.0 | +10.0 | +10.0 |" in text
    assert "12 steps: 0 of 72 runs are finished" in "\n".join(guards.page([tmp_path / "nothing"]))


def test_runs_of_which_only_the_guarded_one_is_finished_have_a_table(study: Path) -> None:
    write_run(study, cell("stop", 4), 0.60)
    write_run(study, cell("stop", 2, steps=120), 0.48, fired=True, steps=6)
    write_run(study, cell("stop", 3, steps=120), 0.50, fired=True, steps=4)
    text = "\n".join(guards.page([study]))
    # The guard did not stop seed 4: without it the run would be the same.
    assert "- 12 steps: 5 of 72 runs are finished." in text and "- 120 steps: 0 of 72 runs" in text
    assert "2 runs that the guard stopped" in text and "1 of them ended more than one point" in text
    assert "the worst by -2.0 points." in text
    row = "| digits_model | 0.0002 | 120 | `ttrl` | 2 | 4–6 | 50.0 → 49.0 | -1.0 [-13.7, +11.7] | 50.0 → 51.0 |"
    assert row in text


def test_several_folders_are_one_study(study: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    more = tmp_path_factory.mktemp("more")
    write_run(more, cell("warn", 4), 0.60)
    assert "- 12 steps: 5 of 72 runs are finished." in "\n".join(guards.page([study, more]))


def test_settled_runs_stand_beside_those_of_a_fixed_number_of_steps(tmp_path: Path) -> None:
    write_run(tmp_path, cell("warn", 2, steps=120), 0.60)
    write_run(tmp_path, cell("settle", 2, steps=120), 0.59, stopped_by="settled", steps=40, tokens=300)
    # The guard stops the next one in both, so that it is compared with the run in `stop/`.
    write_run(tmp_path, cell("warn", 3, steps=120), 0.10, fired=True)
    write_run(tmp_path, cell("stop", 3, steps=120), 0.50, fired=True, stopped_by="guard", steps=9)
    write_run(tmp_path, cell("settle", 3, steps=120), 0.50, fired=True, stopped_by="guard", steps=9)
    # This one has nothing to be compared with yet.
    write_run(tmp_path, cell("settle", 2, steps=120, start="clean_model"), 0.50, stopped_by="settled")
    text = "\n".join(guards.page([tmp_path]))
    assert "3 of 24 runs that settle are finished (commit `abcdef01`); 2 have the other run, too." in text
    assert (
        "| digits_model | 0.0002 | `ttrl` | 2 | 1 | 9–40 of 120 | 35 % | 50.0 → 55.0 / 54.5 | -0.5 [-6.9, +5.9] | "
        "50.0 → 57.0 / 56.5 | -0.5 [-6.9, +5.9] |"
    ) in text
    assert "| clean_model | 0.0002 | `ttrl` | 0 | – | – | – | – | – | – | – |" in text


def outcome(verdict: str, gain: float, vote_gain: float, greedy_gain: float, start: str = "a") -> Outcome:
    return Outcome(start, "0.1 `ttrl`", Interval(gain, gain - 2, gain + 2), verdict, vote_gain, greedy_gain, 0.0)


@pytest.mark.parametrize(
    ("verdict", "vote_gain", "greedy_gain", "right"),
    [
        ("adapt", 0.0, 0.1, True),
        ("adapt", 9.0, 0.0, False),
        ("vote", 3.0, 3.0, True),
        ("vote", 3.0, 3.1, False),
        ("keep", 9.0, 5.0, True),
        ("keep", 9.0, 5.1, False),
        ("neither", -1.0, 0.0, True),
        ("neither", 0.5, -9.0, False),
    ],
)
def test_a_verdict_is_right_or_wrong(verdict: str, vote_gain: float, greedy_gain: float, right: bool) -> None:
    assert outcome(verdict, 0.0, vote_gain, greedy_gain).right is right


def test_the_verdicts_of_the_cells_are_held_against_what_happened(study: Path) -> None:
    text = "\n".join(forecasts.cell_sections([study]))
    # Greedy answers: +12 in one run, +7 with the guard in the next; +2 and -8 after `vote`, whose vote has +10.
    assert "| digits_model, seed 2 | +10.0 [+5.0, +15.0] | adapt | +10.0 | +12.0 | +2.0 |" in text
    assert "| adapt | 2 | +9.5 | +17.0 | 2 | 0 | 2 |" in text
    assert "| vote | 2 | -3.0 | -18.0 | 1 | 1 | 2 |" in text
    assert "4 of 144 runs of 3 starts and 4 seeds are finished (commit `abcdef01`)" in text
    assert "Calibration at a rate of 0.0008, 12 steps:" in text and "120 steps" not in text


def test_the_calibration_takes_predicted_gains_together() -> None:
    rows = [outcome("vote", 0.0, 5.0, -3.0), outcome("vote", -2.0, 7.0, -1.0, "b"), outcome("adapt", 20.0, 9.0, 21.0)]
    lines = list(forecasts.calibration(rows))
    assert lines[2:] == [
        "| up to 0 | 2 | 2 | -1.0 | +6.0 | -2.0 | +0.0 |",
        "| above 15 | 1 | 1 | +20.0 | +9.0 | +21.0 | +0.0 |",
    ]
    said = forecasts.agreement(rows)
    assert said.startswith("2 of 3 changes lie in the interval of their forecast; on average a change is -0.3 points")
    assert "1.7 either way" in said and "changes: 0.50." in said
    (between,) = list(forecasts.calibration([outcome("adapt", 5.0, 0.0, 0.0)]))[2:]
    assert between.startswith("| above 0, up to 5 | 1 | 1 |")


def test_a_pair_counts_in_points_of_pass_at_1() -> None:
    def figures(value: float) -> Mapping[str, float]:
        return {"greedy": 0.0, "pass_at_1": value}

    pair = Pair(2, figures(50.0), figures(49.0), figures(52.0), fired=True)
    assert (pair.without, pair.with_guard, pair.cost, pair.lost) == (-1.0, 2.0, -3.0, False)
    assert Pair(2, figures(50.0), figures(48.9), figures(50.0), fired=True).lost
    assert str(Setting("m", 2e-4, 12, "ttrl")) == "m, lr 0.0002, 12 steps, ttrl"
