"""The comparison as a LaTeX table."""

from __future__ import annotations

import re
from pathlib import Path

from saved_runs import AFTER, BEFORE, write_run

from mm_spine.reporting.compare import compare_runs
from mm_spine.reporting.comparison import write_comparison
from mm_spine.reporting.latex import escape, latex_table


def test_no_text_of_a_run_is_read_as_latex() -> None:
    assert escape(r"a_b & 50% $x$ #1 {c} ~^\input") == (
        r"a\_b \& 50\% \$x\$ \#1 \{c\} \textasciitilde{}\textasciicircum{}\textbackslash{}input"
    )
    assert escape("one\ntwo--three") == r"one\textbackslash{}ntwo-{}-{}three"


def test_the_table_by_hand(finished: Path, other: Path, tmp_path: Path) -> None:
    table = write_comparison([finished, other], tmp_path / "c.tex").read_text()
    assert r"\usepackage{booktabs}" in table and table.count(r"\midrule") == 2
    heads = (
        r"Method & Seeds & greedy & pass@1 & maj@4 before & maj@4 after & $\Delta$ to the vote & $p_{\mathrm{Holm}}$ \\"
    )
    assert heads in table
    held_out = table[table.index("Held-out questions, $n=2$") :]
    # The held-out questions of write_run: greedy 0 1 and 1 1, the vote 0 1 and 1 1.
    assert (
        r"spine & 1 & 50.0 $\rightarrow$ 100.0 & 37.5 $\rightarrow$ 100.0 & 50.0 & 100.0 & "
        r"$+50.0$ [$+0.0$, $+100.0$] & 1.000 \\"
    ) in held_out
    assert r"ttrl \$x\$ \_y & 1 & 50.0" in held_out
    columns = re.findall(r"\{@\{\}l(r+)@\{\}\}", table)
    assert [len(found) for found in columns] == [7]
    for row in re.findall(r"^(?:spine|ttrl).*$", table, flags=re.M):
        assert row.count(" & ") == 7
    assert table.count("{") == table.count("}")


def test_of_several_seeds_the_mean_stands_in_the_table(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"s{seed}", BEFORE, AFTER, seed=seed) for seed in (0, 1)]
    table = latex_table(compare_runs(runs), ["a note & more"])
    assert len(re.findall(r"^spine & 2 & ", table, flags=re.M)) == 2 and "spine & 1 &" not in table
    assert r"A note \& more." in table
