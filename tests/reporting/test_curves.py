"""Curves over steps."""

from __future__ import annotations

from pathlib import Path

from mm_spine.files import write_json_lines
from mm_spine.reporting import curves
from mm_spine.reporting.saved_run import read_run


def test_curves_skip_what_is_no_number(copy: Path) -> None:
    rows = [{"step": 1, "loss": 2.0}, {"step": 0, "loss": 1.0}, {"step": 2, "loss": None}, {"step": 3, "loss": "x"}]
    write_json_lines(copy / "steps.jsonl", rows)
    drawn = {chart.name: chart for chart in curves.charts(read_run(copy))}
    assert drawn["loss"].series == (curves.Series("total", (0.0, 1.0), (1.0, 2.0)),)
    assert "entropy" not in drawn and "accuracy" in drawn


def test_long_curves_are_thinned_and_say_so(copy: Path) -> None:
    write_json_lines(copy / "steps.jsonl", [{"step": i, "loss": 1.0} for i in range(2 * curves.MAX_POINTS + 2)])
    (chart,) = (chart for chart in curves.charts(read_run(copy)) if chart.name == "loss")
    assert len(chart.series[0].x) <= curves.MAX_POINTS and "Thinned" in chart.note


def test_a_run_looks_alike_in_every_figure(copy: Path, finished: Path) -> None:
    write_json_lines(copy / "evaluation" / "steps.jsonl", [])
    runs = [("other", read_run(copy)), ("finished", read_run(finished))]
    places = {(line.label, line.place) for chart in curves.overlaid(runs) for line in chart.series}
    assert places == {("other", 0), ("finished", 1)}
