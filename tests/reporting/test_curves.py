"""Curves over steps."""

from __future__ import annotations

from pathlib import Path

from mm_spine.files import read_json, write_json, write_json_lines
from mm_spine.reporting import curves, figures, page_figures
from mm_spine.reporting.saved_run import read_run


def test_curves_skip_what_is_no_number(copy: Path) -> None:
    rows = [{"step": 1, "loss": 2.0}, {"step": 0, "loss": 1.0}, {"step": 2, "loss": None}, {"step": 3, "loss": "x"}]
    write_json_lines(copy / "steps.jsonl", rows)
    drawn = {chart.name: chart for chart in curves.charts(read_run(copy))}
    assert drawn["loss"].series == (curves.Series("total", (1.0, 2.0), (1.0, 2.0)),)
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


def test_steps_count_from_1_everywhere(copy: Path) -> None:
    for chart in curves.charts(read_run(copy)):
        assert all(line.x == (1.0, 2.0, 3.0) for line in (*chart.series, *(chart.band or ()))), chart.name


def labels(run: Path, **parts: list[float]) -> list[str]:
    """The lines of the chart of the loss, for steps with these values."""
    steps = len(next(iter(parts.values())))
    write_json_lines(
        run / "steps.jsonl",
        [
            {"step": i, "loss": 1.0, **{f"loss_{name}": values[i] for name, values in parts.items()}}
            for i in range(steps)
        ],
    )
    (chart,) = (chart for chart in curves.charts(read_run(run)) if chart.name == "loss")
    return [line.label for line in chart.series]


def test_a_part_of_the_loss_that_is_always_0_has_no_line(copy: Path) -> None:
    assert labels(copy, policy=[1.0, 1.0], band=[0.1, 0.1], kl=[0.0, 0.0]) == ["total", "policy", "band"]
    assert labels(copy, policy=[1.0, 1.0], band=[0.0, 0.0], kl=[0.0, 0.2]) == ["total", "policy", "KL"]
    assert labels(copy, policy=[1.0, 1.0], band=[0.0, 0.0], kl=[0.0, 0.0]) == ["total"]


def guarded(run: Path, **guard: object) -> Path:
    summary = read_json(run / "summary.json")
    write_json(run / "summary.json", {**summary, "guard": guard})
    return run


def test_the_step_at_which_the_guard_fired_is_marked_in_every_curve(copy: Path, finished: Path) -> None:
    assert all(chart.mark is None for chart in curves.charts(read_run(finished)))
    charts = list(curves.charts(read_run(guarded(copy, fired=True, step=2, signal="length"))))
    assert charts and all(chart.mark == curves.Mark(2, "guard fired") for chart in charts)
    with figures.style():
        figure = figures.draw_chart(charts[0])
    (line,) = (line for line in figure.axes[0].lines if line.get_label() == "guard fired")
    assert list(line.get_xdata()) == [2, 2]
    assert page_figures.draw_chart(charts[0], False).data["mark"] == {"step": 2, "label": "guard fired"}  # type: ignore[index]
    assert all(chart.mark is None for chart in curves.charts(read_run(guarded(copy, fired=False, step=None))))
