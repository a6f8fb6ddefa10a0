"""The comparison of several runs as a file."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
from saved_runs import AFTER, BEFORE, item, size_of, write_run
from typer.testing import CliRunner

from mm_spine import cli
from mm_spine.reporting.comparison import named_runs, write_comparison


def test_the_page_has_the_forest_plot_the_table_and_a_line_for_each_run(
    finished: Path, other: Path, tmp_path: Path
) -> None:
    html = write_comparison([finished, other], tmp_path / "c.html").read_text()
    assert "2 runs compared" in html and "ttrl $x$ _y" in html and "pass@1 against spine" in html
    assert 'id="figure-forest"' in html and "sign flips, 4 questions" in html
    (data,) = re.findall(r'id="figure-majority_share".*?<script type="application/json">(.*?)</script>', html, re.S)
    assert [line["label"] for line in json.loads(data)["lines"]] == ["spine", "ttrl $x$ _y"]


def test_pictures_show_the_forest_plot_or_the_curves(finished: Path, other: Path, tmp_path: Path) -> None:
    runs = [finished, other]
    assert size_of(write_comparison(runs, tmp_path / "c.png"))[0] == 960
    assert size_of(write_comparison(runs, tmp_path / "curves.png", draw_curves=True))[0] > 1000
    assert write_comparison(runs, tmp_path / "c.pdf").read_bytes().startswith(b"%PDF")
    svg = write_comparison(runs, tmp_path / "c.svg").read_text()
    assert "ttrl $x$ _y, seed 0" in svg and "Held-out questions" in svg


def test_the_table_as_csv_has_every_figure(finished: Path, other: Path, tmp_path: Path) -> None:
    with write_comparison([finished, other], tmp_path / "c.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["split"], row["method"]) for row in rows] == [
        ("adapted", "spine"), ("adapted", "ttrl $x$ _y"), ("held_out", "spine"), ("held_out", "ttrl $x$ _y"),
    ]  # fmt: skip
    # Held out: greedy 1 1 after, the vote 0 1 before; ttrl's greedy answers stay 0 1.
    assert [(row["vote_before"], row["greedy_after"], row["difference"]) for row in rows[2:]] == [
        ("0.5", "1.0", "0.5"), ("0.5", "0.5", "0.0"),
    ]  # fmt: skip
    assert rows[2]["against"] == "the starting model's vote" and float(rows[2]["p_holm"]) == 1.0


def test_what_cannot_be_written_is_said(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ends in \.html"):
        write_comparison([finished], tmp_path / "c.xlsx")
    with pytest.raises(ValueError, match=r"--curves with --output .*c\.csv"):
        write_comparison([finished], tmp_path / "c.csv", draw_curves=True)
    blind = [item("a", None, "1222"), item("b", None, "1112")]
    unlabelled = write_run(tmp_path / "blind", blind, blind)
    with pytest.raises(ValueError, match="no difference to draw"):
        write_comparison([unlabelled], tmp_path / "c.pdf")
    (tmp_path / "begun").mkdir()
    for suffix in ("csv", "tex"):
        with pytest.raises(ValueError, match="no table to write"):
            write_comparison([tmp_path / "begun"], tmp_path / f"c.{suffix}")
    with pytest.raises(ValueError, match="--against .*begun: unfinished: no summary.json"):
        write_comparison([finished], tmp_path / "c.pdf", tmp_path / "begun")


def test_a_run_to_test_against_need_not_be_among_the_runs(finished: Path, other: Path, tmp_path: Path) -> None:
    with write_comparison([finished], tmp_path / "c.csv", against=other).open() as file:
        rows = {(row["split"], row["method"]): row for row in csv.DictReader(file)}
    assert rows["adapted", "spine"]["against"] == "ttrl $x$ _y" and rows["adapted", "ttrl $x$ _y"]["against"] == ""
    # pass@1 of the held-out questions: 1 1 against 1/4 2/4.
    assert float(rows["held_out", "spine"]["difference"]) == pytest.approx(0.625)


def test_the_command_prints_the_tests_and_writes_what_it_is_asked_for(
    finished: Path, other: Path, tmp_path: Path
) -> None:
    runs = [str(finished), str(other)]
    done = CliRunner().invoke(cli.app, ["compare", *runs, "--output", str(tmp_path / "c.tex"), "--against", runs[1]])
    assert done.exit_code == 0 and "written to" in done.output and (tmp_path / "c.tex").is_file()
    assert "p (Holm)" in done.output and "pass@1 after adapting, minus ttrl $x$ _y" in done.output
    lost = CliRunner().invoke(cli.app, ["compare", *runs, "--curves"])
    assert isinstance(lost.exception, ValueError) and "--curves needs --output" in str(lost.exception)


def test_runs_of_one_name_are_told_apart(finished: Path, tmp_path: Path) -> None:
    again = write_run(tmp_path / "again", BEFORE, AFTER)
    assert [name for name, _ in named_runs([finished, again])] == ["spine (run)", "spine (again)"]
