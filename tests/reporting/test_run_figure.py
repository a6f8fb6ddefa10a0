"""The curves of a run in memory as one figure."""

from __future__ import annotations

import pytest

from mm_spine.reporting.run_figure import draw_run

STEPS = [
    {"step": i, "majority_share": 0.5 + 0.1 * i, "entropy_mean": 0.9 - 0.2 * i, "entropy_forks": None, "loss": -0.1 * i}
    for i in range(4)
]
TIMINGS = [{"step": i, "sample": 1.0, "update": 2.0 + i, "peak_memory_bytes": 10**9} for i in range(4)]


def test_each_chart_has_the_values_of_its_steps_and_a_legend() -> None:
    figure = draw_run(STEPS, TIMINGS, ("entropy", "seconds"))
    entropy, seconds = figure.axes
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "Token entropy and band, nats",
        "Time per step, seconds",
    ]
    (line,) = entropy.lines
    assert list(line.get_xdata()) == [1, 2, 3, 4]
    assert list(line.get_ydata()) == pytest.approx([0.9, 0.7, 0.5, 0.3])
    assert [text.get_text() for text in seconds.get_legend().get_texts()] == ["sampling", "update"]


def test_charts_without_values_are_left_out_and_wrong_names_refused() -> None:
    assert len([axes for axes in draw_run(STEPS, ()).axes if axes.lines]) == 3
    with pytest.raises(ValueError, match="'entropie' is no curve; did you mean 'entropy'"):
        draw_run(STEPS, TIMINGS, ("entropie",))
    with pytest.raises(ValueError, match="no values of seconds: no step was made"):
        draw_run(STEPS, (), ("seconds",))
