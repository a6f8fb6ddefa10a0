"""Figures, drawn and written."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import matplotlib
import pytest

from mm_spine.reporting import curves, figures, report
from mm_spine.reporting.saved_run import read_run


def test_every_figure_is_written_as_png_pdf_and_svg(finished: Path) -> None:
    names = {path.stem for path in (finished / "figures").glob("*.png")}
    drawn = set(re.findall(r'id="figure-(\w+)"', (finished / "report.html").read_text()))
    assert (
        names == drawn >= {"scores_adapted", "scores_held_out", "accuracy", "entropy", "entropy_histogram", "seconds"}
    )
    signs = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}
    for suffix, sign in signs.items():
        written = list((finished / "figures").glob(f"*.{suffix}"))
        assert {path.stem for path in written} == names
        assert all(path.read_bytes().startswith(sign) for path in written)


def test_ids_of_the_drawings_do_not_meet(finished: Path) -> None:
    html = (finished / "report.html").read_text()
    ids = re.findall(r'\bid="([^"]*)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'url\(#([^)]*)\)|xlink:href="#([^"]*)"', html)) <= {
        pair for x in ids for pair in ((x, ""), ("", x))
    }


def test_the_band_is_drawn_between_its_bounds(finished: Path) -> None:
    (chart,) = (chart for chart in curves.charts(read_run(finished)) if chart.name == "entropy")
    assert chart.band is not None and (chart.band[0].y[0], chart.band[1].y[0]) == (0.3, 0.6)
    with figures.style():
        figure = figures.draw_chart(chart)
    area = figure.axes[0].collections[0].get_datalim(figure.axes[0].transData)
    assert (area.y0, area.y1) == pytest.approx((0.3, 0.6))


@pytest.mark.parametrize("value", ["1" * 400, "1e308"])
def test_a_number_that_cannot_be_drawn_costs_its_figure_alone(copy: Path, value: str) -> None:
    (copy / "steps.jsonl").write_text(
        "".join(f'{{"step": {i}, "loss": {value}, "parity_max": {value}}}\n' for i in (0, 1))
    )
    html = report.render_report(read_run(copy))
    assert 'id="figure-accuracy"' in html and "figure-parity" not in html
    for data in re.findall(r'<script type="application/json">(.*?)</script>', html, flags=re.S):
        assert "Infinity" not in data


def test_no_figure_is_written_through_a_link(copy: Path, tmp_path: Path) -> None:
    target, outside = tmp_path / "mine.png", tmp_path / "outside"
    target.write_text("mine")
    outside.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "as_files", lambda figure, name, title="": {"png": b"drawn", "svg": b"<svg></svg>"})
        (copy / "figures" / "loss.png").unlink()
        (copy / "figures" / "loss.png").symlink_to(target)
        report.write_report(copy)
        shutil.rmtree(copy / "figures")
        (copy / "figures").symlink_to(outside)
        page_ = report.write_report(copy).read_text()
    assert target.read_text() == "mine" and list(outside.iterdir()) == []
    assert "figures/ points out of the folder" in page_


def test_a_figure_is_the_same_bytes_again_and_its_text_is_text(finished: Path) -> None:
    (chart,) = (chart for chart in curves.charts(read_run(finished)) if chart.name == "length")
    with figures.style():
        first, again = (figures.as_files(figures.draw_chart(chart), "length", "Title") for _ in range(2))
    assert first == again
    assert b">mean length</text>" in first["svg"] and b"Title" not in first["svg"], "a caption has the title"
    assert b"/FontFile2" in first["pdf"] and b"/Type3" not in first["pdf"], "some publishers refuse type 3 fonts"


def test_the_style_sheet_has_the_colours_of_the_lines() -> None:
    with figures.style():
        assert tuple(matplotlib.rcParams["axes.prop_cycle"].by_key()["color"]) == figures.COLOURS
        assert (matplotlib.rcParams["font.size"], matplotlib.rcParams["text.color"]) == (figures.FONT_SIZE, figures.INK)


def test_over_k_the_axis_is_logarithmic_and_close_numbers_are_not_both_labelled() -> None:
    line = curves.Series("before", tuple(range(1, 19)), tuple(k / 18 for k in range(1, 19)))
    figure = figures.draw_chart(curves.Chart("pass_at_k", "pass@k", "share", (line,), "share", over="k"))
    (axes,) = figure.axes
    assert axes.get_xscale() == "log" and axes.get_xlabel() == "k"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "4", "8", "18"]
