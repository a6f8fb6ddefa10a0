"""The cells of the catalogue and of the stability frontier, and that their pages compute what they say."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from mm_spine.files import write_json, write_json_lines
from mm_spine.methods.table import METHODS

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts" / "study"))

import catalogue_page
import cells
import frontier_page
import run_cells as study
from cells import Cell
from ended import Ended

# --- The cells ----------------------------------------------------------------------------------------------------


def test_every_row_that_can_run_has_a_cell_for_each_seed_and_rate() -> None:
    table = cells.catalogue()
    labels = {cell.label for cell in table if cell.group == "common-lr"}
    assert labels == set(cells.rows(readers=True)) - {"rlcf"}
    assert {"oracle", "spine", "likelihood", "ttrl-ear-clip"} <= labels and "none" not in labels
    assert len(table) == len({cell.name for cell in table}) == 8 * (1 + 2 * len(labels))
    assert [cell.name for cell in table[:2]] == ["main/none/seed_0", "main/ttrl/seed_0"]
    lean = {(cell.group, cell.label) for cell in table if cell.lean}
    assert ("main", "likelihood") in lean and ("common-lr", "ttrl") in lean and ("main", "ttrl") not in lean


def test_a_row_of_the_main_table_is_the_same_cell_in_the_catalogue(tmp_path: Path) -> None:
    shared = {cell.name: cell for cell in cells.cells()}
    both = [cell for cell in cells.catalogue() if cell.name in shared]
    assert len(both) == 8 * len(cells.MAIN)
    assert {cell.label for cell in both} == set(cells.MAIN)
    for cell in both[:13]:
        assert cell.config(tmp_path) == shared[cell.name].config(tmp_path)


def test_a_row_that_needs_more_is_left_out_with_its_reason_until_it_has_it(tmp_path: Path) -> None:
    assert cells.left_out("spine") is None
    assert cells.left_out("rlcf") == "method rlcf needs a CLIP model: set method.clip to its folder"
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    given = [f"method.clip={tmp_path}"]
    assert cells.left_out("rlcf", given) is None
    assert {cell.label for cell in cells.frontier(given, ["rlcf"])} == {"none", "rlcf"}


def test_the_frontier_has_rates_and_steps_without_the_guard(tmp_path: Path) -> None:
    table = cells.frontier(labels=["ttrl", "spine"])
    default = cells.digits_config().optim.lr
    assert len(table) == len({cell.name for cell in table}) == 4 + 2 * 2 * 5 * 4
    configs = {cell.name: cell.config(tmp_path) for cell in table[4:]}
    assert {(config.guard.act, config.evaluation.held_out) for config in configs.values()} == {("off", False)}
    for steps in (12, 96):
        for rate in (1, 2, 4, 8, 16):
            config = configs[f"frontier-{steps}-x{rate}/spine/seed_3"]
            assert (config.optim.steps, config.seed, config.method.name) == (steps, 3, "spine")
            assert config.optim.lr == pytest.approx(rate * default)
    assert all(cell.lean and cell.before == f"frontier/none/seed_{cell.seed}" for cell in table[4:])
    assert "oracle" not in cells.rows() and set(cells.rows()) - {"ttrl-ear-clip"} <= METHODS.keys()


def test_rows_are_chosen_by_name_for_these_studies_only(capsys: pytest.CaptureFixture[str]) -> None:
    options = study.parse(["--study", "frontier", "--rows", "ttrl,spine"])
    assert {cell.label for cell in study.cells_of("frontier", (), options.rows)} == {"none", "ttrl", "spine"}
    for arguments, message in (
        (["--rows", "ttrl"], "the study digits has its own"),
        (["--study", "frontier", "--rows", "spin"], "--rows spin: no such row; they are ttrl"),
        (["--study", "frontier", "--rows", "oracle"], "no such row"),
    ):
        with pytest.raises(SystemExit):
            study.parse(arguments)
        assert message in capsys.readouterr().err


def test_a_lean_cell_keeps_its_figures_only(tmp_path: Path) -> None:
    def runner(config: Any, folder: Path, allow_labels: bool) -> Mapping[str, Any]:
        for name in ("adapted", "rollouts", "evaluation"):
            (folder / name).mkdir(parents=True)
        (folder / "report.html").write_text("")
        write_json(folder / "summary.json", {})
        return {}

    for lean, kept in ((True, {"evaluation", "summary.json"}), (False, None)):
        cell = Cell("common-lr", "spine", int(lean), lean=lean)
        assert study.perform(study.Task(cell.name, (), cell), tmp_path, runner) is None
        found = {path.name for path in (tmp_path / cell.name).iterdir()}
        assert found == (kept or {"adapted", "rollouts", "evaluation", "report.html", "summary.json"})


# --- Figures ------------------------------------------------------------------------------------------------------


def fabricate(output: Path, cell: Cell, scores: Sequence[float], stopped: str = "steps") -> None:
    """A finished cell: pass@1 adapted before and after, held-out before and after; three steps."""
    folder = output / cell.name
    before, after, held_before, held_after = ({"pass_at_1": score} for score in scores)
    held_out = {"before": held_before, "after": held_after}
    write_json(folder / "summary.json", {"before": before, "after": after, "held_out": held_out, "stopped_by": stopped})
    write_json_lines(folder / "steps.jsonl", [
        {"step": s, "length_mean": 20.0 - 5 * s, "entropy_mean": 0.5 - 0.2 * s, "majority_share": 0.5 + 0.25 * s}
        for s in range(3)
    ])  # fmt: skip
    write_json(folder / "environment.json", {"commit": "abc"})
    (folder / "config.yaml").write_text(yaml.safe_dump(cell.config(output).model_dump(mode="json")))


def test_the_catalogue_page_computes_what_it_says(tmp_path: Path) -> None:
    """ttrl ends at 60 %; spine 2, 3 and 4 points above it, rent 20 below with a spread of 2, random-mask has one seed.

    spine: mean 3, standard error 1/sqrt(3) points: t = 5.196, two degrees of freedom, p = 0.0351, the larger of two,
    which Holm's method leaves. rent: t = -17.32, p = 0.0033, which it doubles.
    """
    wanted = {"ttrl": (0.6, 0.0), "spine": (0.62, 0.01), "rent": (0.4, 0.02), "random-mask": (0.55, 0.0)}
    table = [c for c in cells.catalogue(labels=tuple(wanted)) if c.label != "none" and c.seed < 3 and c.group == "main"]
    for cell in table:
        if cell.label != "random-mask" or cell.seed == 0:
            level, spread = wanted[cell.label]
            end = level + spread * (cell.seed - (cell.label == "rent"))
            stopped = "guard" if cell.label == "rent" else "steps"
            fabricate(tmp_path, cell, (0.5, end, 0.4, end - 0.1), stopped)
    text = catalogue_page.write_page(tmp_path, tmp_path / "results", table).read_text()
    assert "from 10 finished cells; 2 missing. Seeds: 0, 1, 2. Commits: abc (cells: 10)." in text
    assert "- main: 2 cells not run to its end" in text
    assert "- Left out: `rlcf`: method rlcf needs a CLIP model" in text
    short = text.split("## Every row")[0]
    assert "- default rate, adapted, against `ttrl`, 2 rows: better: `spine`; worse: `rent`." in short
    assert "against `random-mask`" not in short
    rows = {line.split("|")[1].strip(" `"): line for line in text.splitlines() if line.startswith("| `")}
    assert "| default | 3 | 50.0 → 63.0 | 40.0 → 53.0 |" in rows["spine"]
    assert "| **+3.0 [+0.5, +5.5], p 0.035** | +7.0 |" in rows["spine"]
    assert "p 0.007**" in rows["rent"]
    assert rows["rent"].endswith("| 3 |") and rows["spine"].endswith("| 0 |")
    assert rows["ttrl"].count("–") == 2
    assert (tmp_path / "results" / "catalogue.png").stat().st_size > 5000


def test_seeds_that_differ_alike_are_not_tested(tmp_path: Path) -> None:
    table = [c for c in cells.catalogue(labels=("ttrl", "spine")) if c.label != "none" and c.seed < 2]
    table = [c for c in table if c.group == "main"]
    for cell in table:
        fabricate(tmp_path, cell, (0.5, 0.75 if cell.label == "spine" else 0.5, 0.5, 0.5))
    found, _ = catalogue_page.load_all(table, tmp_path)
    families = catalogue_page.comparisons(catalogue_page.by_label(found))
    one = families[catalogue_page.Family("main", "ttrl", "adapted")]["spine"]
    assert (one.p, one.p_holm, one.difference.low, one.seeds) == (None, None, None, (0, 1))
    assert one.difference.value == 0.25 and catalogue_page.verdict(one) == ""


def test_the_catalogue_page_of_nothing_says_so(tmp_path: Path) -> None:
    table = cells.catalogue(labels=["ttrl"])[:2]
    text = catalogue_page.write_page(tmp_path, tmp_path / "results", table).read_text()
    assert "from 0 finished cells; 2 missing" in text and "## Every row" not in text
    assert not (tmp_path / "results" / "catalogue.png").exists()


def test_the_frontier_page_computes_what_it_says(tmp_path: Path) -> None:
    """At 12 steps spine gains at x1 and x2 and one of four runs ends below at x4; ttrl gains at x1 in three seeds."""
    ends = {("spine", 1): [0.6] * 4, ("spine", 2): [0.7] * 4, ("spine", 8): [0.6] * 4, ("ttrl", 1): [0.6] * 3}
    ends[("spine", 4)] = [0.6, 0.6, 0.6, 0.2]
    table = [c for c in cells.frontier(labels=["ttrl", "spine"]) if c.label != "none"]
    for cell in table:
        for (label, rate), afters in ends.items():
            if cell.label == label and cell.group == f"frontier-12-x{rate}" and cell.seed < len(afters):
                fabricate(tmp_path, cell, (0.5, afters[cell.seed], 0.5, 0.5))
    text = frontier_page.write_page(tmp_path, tmp_path / "results", table).read_text()
    rows = {line.split("|")[1].strip(" `"): line for line in text.splitlines() if line.startswith("| `")}
    assert rows["spine"] == (
        "| `spine` | 0/4, +10.0 | 0/4, +20.0 | 1/4, +0.0 | 0/4, +10.0 | – | x2 | x4 | 20.0 → 10.0 | 0.500 → 0.100 | "
        "0.50 → 1.00 |"
    )
    assert rows["ttrl"] == "| `ttrl` | 0/3, +10.0 | – | – | – | – | – | – | – | – | – |"
    assert "- 12 steps, all rates, runs that ended below their start: `ttrl` 0 of 3, `spine` 1 of 16." in text
    assert "## 96 steps" not in text and "- frontier-96-x1: 8 cells not run to its end" in text
    assert (tmp_path / "results" / "frontier.png").stat().st_size > 5000


def test_a_run_that_ends_where_it_began_neither_gains_nor_ends_below() -> None:
    same = {"before": {"pass_at_1": 0.5}, "after": {"pass_at_1": 0.5}}
    ended = [Ended(Cell("frontier-12-x1", "spine", seed), same, [], "") for seed in range(4)]
    points = frontier_page.points_of(ended)
    point = points["spine", 12, 1]
    assert point.below == 0 and not point.all_gain
    assert frontier_page.largest_gaining(points, "spine", 12) is None
    assert frontier_page.breaking(points, "spine", 12) is None
    assert replace(ended[0], summary={}).gain() is None
