"""The forest plot."""

from __future__ import annotations

from mm_spine.intervals import Interval
from mm_spine.reporting import figures, forest
from mm_spine.reporting.contrasts import BASE_VOTE, Contrast


def contrast(method: str, split: str, value: float, low: float | None, high: float | None) -> Contrast:
    return Contrast(method, BASE_VOTE, split, (0,), 40, Interval(value, low, high), 0.02, 0.04)


def test_points_and_intervals_stand_where_their_values_are() -> None:
    found = [
        contrast("ttrl", "adapted", -0.02, -0.05, 0.01), contrast("spine", "adapted", 0.1, None, None),
        contrast("spine", "held_out", 0.25, 0.2, 0.3),
    ]  # fmt: skip
    with figures.style():
        figure = forest.draw_forest(found)
    adapted, held_out = figure.axes
    points = [tuple(line.get_xdata()) for line in adapted.lines if line.get_marker() in figures.MARKERS]
    assert points == [(-2.0,), (10.0,)]
    spans = [tuple(line.get_xdata()) for line in adapted.lines if line.get_linestyle() == "-"]
    assert spans == [(0.0, 0.0), (-5.0, 1.0)], "the line at 0, and one interval: a single value has none"
    assert adapted.get_xlim() == held_out.get_xlim()
    assert adapted.get_xlim()[0] < -5 and adapted.get_xlim()[1] > 30
    words = [text.get_text() for text in adapted.texts]
    assert "ttrl, seed 0" in words and "\u22122.0 [\u22125.0, +1.0]" in words and words.count("0.040") == 2
    assert "Adapted questions" in words


def test_nothing_of_the_figure_lies_outside_of_it() -> None:
    found = [contrast("a-method-with-a-very-long-name-indeed", "adapted", -0.5, -1.0, 1.0)]
    with figures.style():
        figure = forest.draw_forest(found)
        box = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height


def test_the_figure_in_words() -> None:
    words = forest.describe_forest([contrast("spine", "adapted", 0.1, 0.05, 0.15)])
    assert words == (
        "One greedy answer after adapting, minus the starting model's vote (points). "
        "adapted, spine: +10.0 [+5.0, +15.0]"
    )
