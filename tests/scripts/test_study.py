"""The study's table, what it skips and redoes, how it survives failures, and that its report computes what it says."""

from __future__ import annotations

import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import study_worker
import yaml

from mm_spine import evaluation
from mm_spine.config import RunConfig
from mm_spine.evaluation import Item
from mm_spine.files import write_json, write_json_lines
from mm_spine.intervals import Interval, bootstrap_ci
from mm_spine.types import Verdict

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts" / "study"))  # spawned workers inherit it

import cells
import habits
import report as study_report
import results
import run_cells as study
import tables
from cells import Cell
from run_cells import Schedule, Task

# --- The table ----------------------------------------------------------------------------------------------------


def test_the_table_is_seed_major_with_the_base_first() -> None:
    names = [cell.name for cell in cells.cells()]
    assert len(names) == len(set(names)) == 8 * 12 + 2 * 2 + 2 * 3 + 2 * 2
    assert names[:3] == ["main/none/seed_0", "main/ttrl/seed_0", "main/spine/seed_0"]
    assert names[11:13] == ["main/oracle/seed_0", "main/none/seed_1"]
    assert names[96:100] == [f"high-lr/{label}/seed_{seed}" for seed in (0, 1) for label in ("ttrl", "spine")]
    assert names[100:103] == [f"direct-heavy/{label}/seed_0" for label in ("none", "ttrl", "spine")]
    assert [name.partition("/")[0] for name in names[106:]] == ["long"] * 4


def test_every_cell_has_the_settings_it_is_named_for(tmp_path: Path) -> None:
    default = cells.digits_config()
    configs = {cell.name: cell.config(tmp_path) for cell in cells.cells()}
    for name, config in configs.items():
        assert (config.threads, config.engine.measure_update, config.reporting.images) == (1, True, False), name
        assert name.endswith(f"seed_{config.seed}")
        group = name.partition("/")[0]
        assert config.optim.steps == (10 if group == "long" else 1) * default.optim.steps, name
        assert config.optim.lr == pytest.approx((10 if group == "high-lr" else 1) * default.optim.lr), name
        assert config.model.path == (str(tmp_path / "direct_heavy_model") if group == "direct-heavy" else None), name
    ears = {name: (configs[f"main/{name}/seed_3"].method.name, configs[f"main/{name}/seed_3"].method.ear)
            for name in ("ttrl-ear", "ttrl-ear-clip")}  # fmt: skip
    assert ears == {"ttrl-ear": ("ttrl-ear", "adv_res"), "ttrl-ear-clip": ("ttrl-ear", "adv_clip")}


def test_before_is_taken_over_from_the_base_of_the_same_start_once_it_is_finished(tmp_path: Path) -> None:
    table = {cell.name: cell for cell in cells.cells()}
    assert table["main/none/seed_2"].before is None
    assert table["main/rent/seed_2"].before == table["long/spine/seed_1"].before.replace("_1", "_2")  # type: ignore[union-attr]
    assert table["direct-heavy/spine/seed_1"].before == "direct-heavy/none/seed_1"
    cell = table["high-lr/spine/seed_1"]
    assert cell.config(tmp_path).evaluation.before is None
    write_json(tmp_path / "main/none/seed_1" / "summary.json", {})
    assert cell.config(tmp_path).evaluation.before == tmp_path / "main/none/seed_1"


def test_cells_are_chosen_by_name() -> None:
    table = cells.cells()
    assert [c.name for c in study.choose(table, ["long/*/seed_1", "*/rent/seed_7"])] == [
        "main/rent/seed_7", "long/ttrl/seed_1", "long/spine/seed_1",
    ]  # fmt: skip
    assert study.choose(table, None) == table
    with pytest.raises(SystemExit, match=r"main/spin/\*: no such cell; names are like main/none/seed_0"):
        study.choose(table, ["main/spin/*"])


def test_a_trial_may_not_write_over_the_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["limit=2"], ["--output", str(tmp_path), "limit=2"]):
        with pytest.raises(SystemExit):
            study.parse(arguments)
        assert "an --output and a --results of its own" in capsys.readouterr().err
    options = study.parse(["--results", str(tmp_path), "limit=2", "--output", str(tmp_path), "seed=1"])
    assert options.overrides == ["limit=2", "seed=1"]


# --- Skipping, redoing, failing -----------------------------------------------------------------------------------


def test_finished_cells_are_skipped_and_the_second_model_is_built_once(tmp_path: Path) -> None:
    table = cells.cells()
    write_json(tmp_path / table[1].name / "summary.json", {})
    (tmp_path / table[2].name).mkdir(parents=True)  # half-written
    names = [task.name for task in study.tasks(table, tmp_path)]
    assert table[1].name not in names
    assert table[2].name in names
    assert names.count("direct_heavy_model") == 1
    assert names.index("direct_heavy_model") == names.index("direct-heavy/none/seed_0") - 1
    (tmp_path / "direct_heavy_model").mkdir()
    assert "direct_heavy_model" not in [task.name for task in study.tasks(table, tmp_path)]
    assert [task.name for task in study.tasks(table[:2], tmp_path)] == [table[0].name]


def test_a_task_waits_for_what_it_needs_and_a_failure_holds_nothing_up() -> None:
    base, method, later, free = Task("a", ()), Task("b", ("a",)), Task("c", ("a", "elsewhere")), Task("d", ())
    schedule = Schedule([base, method, later, free])
    assert [schedule.next(), schedule.next(), schedule.next()] == [base, free, None]
    schedule.ended("a")
    assert [schedule.next(), schedule.next(), schedule.next()] == [method, later, None]
    assert schedule.running == {"b", "c", "d"}


def test_half_written_cells_are_redone_from_the_start(tmp_path: Path) -> None:
    seen: list[tuple[RunConfig, bool]] = []

    def runner(config: RunConfig, folder: Path, allow_labels: bool) -> Mapping[str, Any]:
        assert not folder.exists()
        seen.append((config, allow_labels))
        write_json(folder / "summary.json", {})
        return {}

    for label in ("spine", "oracle"):
        cell = Cell("main", label, 1)
        (tmp_path / cell.name / "checkpoints").mkdir(parents=True)
        (tmp_path / cell.name / "failed.txt").write_text("of an earlier call")
        assert study.perform(Task(cell.name, (), cell), tmp_path, runner) is None
    assert [(config.method.name, allowed) for config, allowed in seen] == [("spine", False), ("oracle", True)]


def test_a_failing_cell_says_why(tmp_path: Path) -> None:
    def runner(config: RunConfig, folder: Path, allow_labels: bool) -> None:
        raise ValueError("no\nweights")

    cell = Cell("main", "spine", 0)
    assert cells.missing(cell, tmp_path) == "not run to its end"
    assert study.perform(Task(cell.name, (), cell), tmp_path, runner) == "ValueError: no weights"
    assert (tmp_path / cell.name / "failed.txt").read_text() == "ValueError: no weights\n"
    assert cells.missing(cell, tmp_path) == "failed with ValueError, see failed.txt in its folder"
    assert study.perform(Task(cell.name, (), cell), tmp_path, lambda *_, **__: None) == "stopped by a signal"


def test_a_worker_that_fails_or_dies_costs_one_cell_and_an_interrupt_ends_them_all(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    todo = [Task("fail", ()), Task("die", ("fail",)), Task("well", ("die",)), Task("stop", ("well",))]
    usual, started = signal.getsignal(signal.SIGINT), time.monotonic()
    with caplog.at_level("INFO", logger="study"), pytest.raises(study.Stopped) as stopped:
        study.drive(todo, tmp_path, 1, study_worker.act)
    assert stopped.value.number == signal.SIGINT
    assert signal.getsignal(signal.SIGINT) is usual
    assert time.monotonic() - started < 120
    assert (tmp_path / "log").read_text().split() == ["fail", "die", "well", "stop"]
    assert [message.partition(", ")[0] for message in caplog.messages] == [
        "[1/4] fail: broken", "[2/4] die: its process ended with code 3", "[3/4] well: done",
    ]  # fmt: skip


@pytest.mark.parametrize(("reason", "code"), [(None, 0), ("broken", 1)])
def test_a_cell_that_fails_is_an_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str | None, code: int
) -> None:
    given = ["--only", "main/none/seed_0", "--output", str(tmp_path), "--results", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["run_cells.py", *given])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(study, "drive", lambda todo, output, jobs: {task.name: reason for task in todo})
    monkeypatch.setattr(study, "repeat", lambda cell, output: reason is None)
    monkeypatch.setattr(study, "write_page", lambda options: tmp_path / "digits.md")
    assert study.main() == code
    sys.argv += ["--repeat", "main/none/seed_0"]
    assert study.main() == code


# --- Figures ------------------------------------------------------------------------------------------------------


def test_intervals_by_hand() -> None:
    mean, low, high = results.over_seeds([0.5, 0.25])  # t(0.975, 1) = 12.706, standard error 0.125
    assert (mean, low, high) == pytest.approx((0.375, 0.375 - 1.58827, 0.375 + 1.58827), abs=1e-4)
    assert results.over_seeds([0.3]) == Interval(0.3, None, None)
    assert results.detectable([0.5, 0.25]) == pytest.approx((12.7062 + 1.3764) * 0.125, abs=1e-4)
    assert results.detectable([0.5]) is None


def test_claims_rest_on_the_wider_interval() -> None:
    narrow, wide = Interval(0.1, 0.05, 0.15), Interval(0.1, -0.1, 0.3)
    assert results.Difference(narrow, wide).claimed == results.Difference(wide, narrow).claimed == wide
    assert results.Difference(Interval(0.1, None, None), narrow).claimed.low is None
    shown = (narrow, wide, Interval(-0.1, -0.2, -0.01), Interval(0.1, None, None))
    assert [results.verdict(interval) for interval in shown] == [
        "excludes 0, higher", "includes 0", "excludes 0, lower", "one seed, no interval",
    ]  # fmt: skip


def test_nothing_is_written_as_a_missing_number() -> None:
    assert [tables.number(value) for value in (None, float("nan"), float("inf"), 0.25)] == ["–", "–", "–", "0.2"]
    assert tables.points(Interval(-0.0001, None, None)) == "+0.0"
    assert tables.mean([None, float("nan")]) is None
    assert tables.arrow([0.25, None], scale=100) == "25.0 → –"


def item(name: str, split: str, greedy: float, samples: Sequence[float], voted: float) -> Item:
    n = len(samples)
    return Item(
        name, split, "", Verdict(greedy, greedy > 0.5, ""), ("",) * n, (None,) * n, (None,) * n,
        tuple(Verdict(score, score > 0.5, "") for score in samples), None, voted, (3,) * n, (0.5,) * n, (False,) * n,
    )  # fmt: skip


def fabricate(
    output: Path, cell: Cell, before: Sequence[float], after: Sequence[float], direct: Sequence[float]
) -> None:
    """A finished cell: greedy as given, pass@1 half of it, votes always right; a step for each direct share."""
    folder = output / cell.name
    config, steps = cell.config(output), range(len(direct))
    summary = {
        "benchmark": "digits", "method": config.method.name, "model": "tiny", "seed": cell.seed, "label_free": True,
        "seconds": {"total": 60.0 + cell.seed}, "peak_memory_bytes": 10**9,
    }  # fmt: skip
    for when, scores in (("before", before), ("after", after)):
        rows = [item(f"q{i}", split, g, (g, 0.0), 1.0) for split in tables.SPLITS for i, g in enumerate(scores)]
        write_json_lines(folder / "evaluation" / f"{when}.jsonl", map(evaluation.to_json, rows))
    write_json_lines(folder / "steps.jsonl", [
        {"step": s, "update_norm": 0.1 * (s + 1), "grad_norm": 2.0, "selected_share": 0.2,
         "majority_share": 0.5 + s / 10, "length_mean": 20.0 - s, "entropy_mean": 1.0, "unparsed": 0.0} for s in steps
    ])  # fmt: skip
    write_json_lines(folder / "evaluation" / "steps.jsonl", [
        {"step": s, "label_accuracy": 0.6 - s / 10, "reward_accuracy": None} for s in steps
    ])  # fmt: skip
    (folder / "rollouts").mkdir(parents=True, exist_ok=True)
    for step in steps:
        at_once = round(10 * direct[step])
        texts = [r"\boxed{7}"] * at_once + [r"I see 3 4. \boxed{7}"] * (10 - at_once)
        saved = pa.table({"text": texts, "entropy": pa.array([[]] * 10, type=pa.list_(pa.float16()))})
        pq.write_table(saved, folder / "rollouts" / f"step_{step:06d}.parquet")
    environment = {"python": "3.11.0", "packages": {"torch": "2.13.0", "mm-spine": None}, "machine": "x86_64",
                   "threads": 1, "gpus": [], "commit": "abc"}  # fmt: skip
    write_json(folder / "environment.json", environment)
    (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    write_json(folder / "summary.json", summary)


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Two finished cells and a missing one."""
    table = [Cell("main", "spine", seed) for seed in (0, 1)] + [Cell("long", "ttrl", 0)]
    monkeypatch.setattr(study_report, "cells", lambda extra=(): table)
    fabricate(tmp_path, table[0], [0, 0, 0, 1], [1, 1, 0, 1], [0.8, 0.5, 0.3])
    fabricate(tmp_path, table[1], [0, 0, 0, 1], [1, 0, 0, 1], [0.8, 0.3, 0.2])
    yield tmp_path


def test_the_report_computes_what_it_says(output: Path) -> None:
    path = study_report.write_report(output, output / "results")
    text = path.read_text()
    assert "**Study incomplete: 2 of 3 cells are finished.**" in text
    assert "- long/ttrl, seed 0: not run to its end" in text
    # greedy 25 -> 75 and 25 -> 50; pass@1 is half of it; the vote was right before
    assert "| spine | 2 | 25.0 → 62.5 | 12.5 → 31.2 | 100.0 → 100.0 |" in text
    low, high = (f"{100 * bound:+.1f}" for bound in bootstrap_ci(np.array([1, 0.5, 0, 0])))
    assert f"| spine | greedy | +37.5 | [-121.3, +196.3] | [{low}, {high}] | includes 0 |" in text
    assert "- spine, adapted greedy: +37.5 [-121.3, +196.3] points: includes 0." in text
    assert "| spine | 0.2 | 2 | 20.0 | 80.0 → 25.0 | 20.0 → 75.0 | 1.5 (1 to 2; 2 of 2) |" in text
    assert "| spine | 50.0 → 70.0 | 60.0 → 40.0 | – → – | 20.0 → 18.0 | 1.000 → 1.000 | 0.0 → 0.0 |" in text
    assert "| spine | 37.5 | 25.0 |" in text
    assert "| main/spine | 2 | 60 |" in text
    assert "- commit: abc\n" in text
    assert not re.search(r"\b(nan|inf|None)\b", text)
    assert re.findall(r"\]\((.*?\.png)\)", text) == ["digits_main.png"]
    assert (output / "results" / "digits_main.png").stat().st_size > 1000


def test_a_complete_study_compares_methods_by_seed(output: Path) -> None:
    fabricate(output, Cell("long", "ttrl", 0), [0, 0, 0, 1], [0, 0, 0, 0], [0.8, 0.9])
    for seed, after in enumerate(([1, 0, 0, 1], [0, 0, 0, 1])):
        fabricate(output, Cell("main", "ttrl", seed), [0, 0, 0, 1], after, [0.8, 0.1])
    study_report.cells().extend(Cell("main", "ttrl", seed) for seed in (0, 1))
    path = output / "main/ttrl/seed_0" / "environment.json"
    path.write_text(path.read_text().replace('"abc"', '"def"'))
    text = study_report.write_report(output, output / "results").read_text()
    assert "abc (cells: 4), def (cells: 1)" in text
    assert "Study incomplete" not in text
    assert "from 5 finished cells; none is missing" in text
    # after: spine 75, 50 against ttrl 50, 25; no spread, so no interval includes 0
    same = "+25.0 [+25.0, +25.0] | +12.5 [+12.5, +12.5]"
    assert f"| spine | 2 | {same} | {same} |" in text
    assert "4 of these 4 intervals exclude 0; if no two methods differed, about 0.2 would." in text
    assert "No seed of another method beside one of random-mask is finished." in text
    assert "Of 1 finished cells, adapted pass@1 rose in 0, fell in 0 and shows no change in 1" in text
    assert "below half of its start in 0." in text
    assert "| ttrl | 0 | 25.0 → 0.0 | 12.5 → 0.0 |" in text
    assert "60.0 at step 0 | 80.0 → 90.0 | never |" in text


def test_without_a_finished_cell_the_report_names_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_report, "cells", lambda extra=(): [Cell("main", "spine", 0)])
    text = study_report.write_report(tmp_path, tmp_path / "results").read_text()
    assert "0 of 1 cells are finished" in text
    assert "##" not in text


def test_a_cell_made_with_other_settings_stays_out_of_the_report(output: Path) -> None:
    path = output / "main/spine/seed_1" / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["evaluation"]["before"] = "elsewhere"
    del config["checkpoint"]  # an option younger than the cell
    path.write_text(yaml.safe_dump(config))
    assert cells.missing(Cell("main", "spine", 1), output) is None
    config["optim"]["lr"] = 1.0
    path.write_text(yaml.safe_dump(config))
    assert (
        "- main/spine, seed 1: made with other settings of optim: remove"
        in study_report.write_report(output, output / "results").read_text()
    )


def test_entropy_at_forks_is_of_the_same_tokens_for_every_method() -> None:
    # quantile 0.8 of 1..5 is 4.2: one token; five equal ones are all kept
    entropy = pa.array([[1, 2, 3, 4, 5], [0.5] * 5, []], type=pa.list_(pa.float16()))
    assert results.entropy_at_forks(entropy) == pytest.approx((5 + 5 * 0.5) / 6)
    assert results.entropy_at_forks(entropy[2:]) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"The answer is \boxed{7}.", "direct"),
        (r"I see 3 4. Sum 7. So \boxed{7}.", "reasoned"),
        (r"Digits 3 4. Even 4. Thus \boxed{1}.", "reasoned"),
        (r"I see \boxed{7}.", "direct"),
        ("I see 3 4. Sum 7.", "other"),
        ("", "other"),
    ],
)
def test_a_response_shows_its_habit(text: str, expected: str) -> None:
    assert habits.habit(text) == expected


def test_habits_are_shares_of_the_responses() -> None:
    assert habits.shares([r"\boxed{7}", r"3. \boxed{7}", "", r"\boxed{1}"]) == {
        "direct": 0.5, "reasoned": 0.25, "other": 0.25,
    }  # fmt: skip
    assert habits.shares([]) == {}


def test_a_repeated_cell_is_compared_to_the_byte(output: Path) -> None:
    cell = Cell("main", "spine", 0)
    fabricate(output, cell, [0, 0, 0, 1], [1, 1, 0, 1], [0.8, 0.1])

    def again(change: str) -> Callable[..., dict[str, Any]]:
        def runner(config: RunConfig, folder: Path, *, allow_labels: bool) -> dict[str, Any]:
            shutil.copytree(output / cell.name, folder)
            with (folder / "steps.jsonl").open("a") as file:
                file.write(change)
            return {}

        return runner

    assert study.repeat(cell, output, again(""))
    text = study_report.write_report(output, output / "results").read_text()
    assert "- run again: 1 cells at commit abc, steps.jsonl and every verdict the same to the byte in 1: " in text
    assert not study.repeat(cell, output, again(" "))
    assert "to the byte in 0: " in study_report.write_report(output, output / "results").read_text()
