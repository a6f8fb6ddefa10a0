"""Further columns of a comparison: pass@k, how answers vary, what was learnt and corrupted."""

from __future__ import annotations

import csv
from html import unescape
from math import log
from pathlib import Path

import pytest
from saved_runs import AFTER, BEFORE, item, size_of, write_run
from typer.testing import CliRunner

from mm_spine import cli
from mm_spine.reporting.column_sets import COLUMN_SETS, further_table, pass_at_k_charts
from mm_spine.reporting.compare import compare_runs
from mm_spine.reporting.comparison import write_comparison

QUARTER = log(4) - 3 / 4 * log(3)
"""Entropy of 3 : 1 in nats."""


@pytest.fixture(scope="module")
def blind(tmp_path_factory: pytest.TempPathFactory) -> Path:
    before = [item("a", None, "1222"), item("b", None, "1234")]
    after = [item("a", None, "2222"), item("b", None, "1222")]
    return write_run(tmp_path_factory.mktemp("columns") / "blind", before, after)


def cells(path: Path, name: str, split: int = 0) -> list[tuple[str, str]]:
    (row,) = further_table(compare_runs([path]), name).sections[split].rows
    return [(cell.text, cell.detail.partition(" [")[0]) for cell in row.cells]


def test_pass_at_k_by_hand(finished: Path) -> None:
    assert further_table(compare_runs([finished]), "pass@k").heads == ["pass@1", "pass@2", "pass@4"]
    # Held out: 1 and 2 of 4 right before (1/4 1/2, 1/2 5/6), all after.
    assert cells(finished, "pass@k", 1) == [
        ("37.5 → 100.0", "+62.5"), ("66.7 → 100.0", "+33.3"), ("100.0 → 100.0", "+0.0"),
    ]  # fmt: skip


def test_how_answers_vary_by_hand_and_without_labels(finished: Path, blind: Path) -> None:
    # Held out: "1222" and "1122" before, one answer each after.
    entropy = (QUARTER + log(2)) / 2
    assert cells(finished, "answers", 1) == [
        ("62.5 → 100.0", "+37.5"), (f"{entropy:.3f} → 0.000", f"-{entropy:.3f}"), ("2.00 → 1.00", "-1.00"),
    ]  # fmt: skip
    was, now = (QUARTER + log(4)) / 2, QUARTER / 2
    assert cells(blind, "answers")[1:] == [(f"{was:.3f} → {now:.3f}", f"{now - was:.3f}"), ("3.00 → 1.50", "-1.50")]
    assert further_table(compare_runs([blind]), "answers").sections[0].questions == 2
    assert {text for name in ("pass@k", "learnt", "shares") for text, _ in cells(blind, name)} == {"–"}


def test_learnt_and_corrupted_by_hand(finished: Path) -> None:
    assert cells(finished, "learnt") == [("1 of 4", "share 75.0\u00a0%")] * 4
    assert cells(finished, "learnt", 1) == [
        ("1 of 2", "share 75.0\u00a0%"), ("0 of 2", "share –"), ("1 of 2", "share 75.0\u00a0%"), ("0 of 2", "share –"),
    ]  # fmt: skip
    # a is learnt and b corrupted, of votes of 3 of 4; c and d are without dissent.
    assert cells(finished, "shares") == [
        ("+0 -0", "of 0"), ("+0 -0", "of 0"), ("+1 -1", "of 2"), ("+0 -0", "of 0"), ("+0 -0", "of 2"),
    ]  # fmt: skip


def test_of_several_seeds_counts_are_added_and_values_averaged(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "s0", BEFORE, AFTER, seed=0), write_run(tmp_path / "s1", BEFORE, BEFORE, seed=1)]
    comparison = compare_runs(runs)
    *_, mean = further_table(comparison, "learnt").sections[0].rows
    assert (mean.seed, [cell.text for cell in mean.cells]) == ("2 seeds", ["1 of 8"] * 4)
    *_, mean = further_table(comparison, "pass@k").sections[1].rows
    assert mean.cells[0].text == "37.5 → 68.8" and mean.cells[0].detail.startswith("+31.2")
    only = further_table(comparison, "pass@k", for_paper=True).sections[1].rows
    assert [row.seeds for row in only] == [2]
    _, held_out = pass_at_k_charts(comparison)
    start, after = held_out.series
    assert start.y == pytest.approx((3 / 8, 2 / 3, 7 / 8, 1)) and after.y[0] == pytest.approx((3 / 8 + 1) / 2)
    assert (held_out.over, start.x) == ("k", (1, 2, 3, 4))


def test_the_command_prints_them(finished: Path, other: Path) -> None:
    chosen = [word for name in COLUMN_SETS for word in ("--columns", name)]
    done = CliRunner().invoke(cli.app, ["compare", str(finished), str(other), *chosen], env={"COLUMNS": "140"})
    assert done.exit_code == 0 and "37.5 → 100.0" in done.output and "+1 -1" in done.output
    wrong = CliRunner().invoke(cli.app, ["compare", str(finished), "--columns", "learned"])
    assert "--columns learned: no such columns; did you mean 'learnt'?" in str(wrong.exception)


def test_csv_and_page_have_all_of_them(finished: Path, blind: Path, tmp_path: Path) -> None:
    with write_comparison([finished], tmp_path / "c.csv").open() as file:
        adapted, held_out = csv.DictReader(file)
    assert float(held_out["pass_at_k_2_before"]) == pytest.approx(2 / 3)
    assert float(held_out["answer_entropy_gain"]) == pytest.approx(-(QUARTER + log(2)) / 2)
    assert (adapted["greedy_learnt"], adapted["vote_corrupted"], adapted["greedy_learnt_share"]) == ("1", "1", "0.75")
    with write_comparison([blind], tmp_path / "b.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["greedy_learnt"] == "" and row["distinct_answers_after"] == "1.5" and "pass_at_k_1_before" not in row
    html = unescape(write_comparison([finished], tmp_path / "c.html").read_text())
    assert all(table.title in html for table in COLUMN_SETS.values()) and 'id="figure-pass_at_k_held_out"' in html


def test_one_set_as_latex_and_pass_at_k_as_a_picture(finished: Path, blind: Path, tmp_path: Path) -> None:
    table = write_comparison([finished], tmp_path / "c.tex", columns=["pass@k"]).read_text()
    assert r"Method & Seeds & pass@1 & pass@2 & pass@4 \\" in table
    held_out = table[table.index("Held-out questions") :]
    assert r"spine & 1 & 37.5 $\rightarrow$ 100.0 & 66.7 $\rightarrow$ 100.0 & 100.0 $\rightarrow$ 100.0 \\" in held_out
    assert r"{\scriptsize $+62.5$ [$+50.0$, $+75.0$]}" in held_out and "→" not in table
    shares = write_comparison([finished], tmp_path / "s.tex", columns=["shares"]).read_text()
    assert r"0--25~\% & 25--50~\%" in shares and "$+1$ $-1$" in shares
    assert size_of(write_comparison([finished], tmp_path / "c.png", columns=["pass@k"]))[0] > 1000
    for columns, words in ((["learnt"], "only pass@k is drawn"), (["pass@k", "learnt"], "one --columns")):
        with pytest.raises(ValueError, match=words):
            write_comparison([finished], tmp_path / "c.pdf", columns=columns)
    with pytest.raises(ValueError, match="has pass@k to draw; it takes gold answers"):
        write_comparison([blind], tmp_path / "b.pdf", columns=["pass@k"])
