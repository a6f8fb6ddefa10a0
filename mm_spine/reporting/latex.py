"""Write the comparison as a LaTeX table, and text that LaTeX shows as it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mm_spine.intervals import Interval
from mm_spine.measures import GREEDY, LABELS, PASS_AT_1
from mm_spine.reporting.compare import Comparison, ComparisonRow, majority_header
from mm_spine.reporting.contrasts import BASE_VOTE
from mm_spine.reporting.finished_run import SPLITS
from mm_spine.reporting.formats import Pair, signed
from mm_spine.words import visible_line

_SIGNS = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "''",
}  # fmt: skip
"""Character -> what prints it in any font encoding."""


def escape(text: str) -> str:
    """Return a text from a run's files as LaTeX that prints it, on one line."""
    # Two hyphens would become a dash.
    return "".join(_SIGNS.get(sign, sign) for sign in visible_line(text)).replace("--", "-{}-{}")


def minus(number: str) -> str:
    """Return a signed number in mathematics, where the minus has its right width."""
    return f"${number}$"


def latex_table(comparison: Comparison, notes: Sequence[str]) -> str:
    """Return the comparison as a booktabs table: of several seeds of a method their mean, else each run."""
    compared = comparison.compared
    if not compared:
        raise ValueError("none of these runs is finished, so there is no table to write")
    vote = escape(majority_header(compared))
    against = comparison.contrasts[0].against if comparison.contrasts else BASE_VOTE
    heads = ["Method", "Seeds", escape(LABELS[GREEDY]), escape(LABELS[PASS_AT_1]), f"{vote} before", f"{vote} after"]
    heads += [rf"$\Delta$ to {'the vote' if against == BASE_VOTE else escape(against)}", r"$p_{\mathrm{Holm}}$"]
    lines = [r"% \usepackage{booktabs}", r"\begin{table}", r"\centering", r"\small"]
    lines += [r"\begin{tabular}{@{}l" + "r" * (len(heads) - 1) + "@{}}", r"\toprule", " & ".join(heads) + r" \\"]
    for split, title in SPLITS.items():
        of_split = [row for row in compared if row.split == split]
        if of_split:
            words = rf"\emph{{{title}, $n={of_split[0].questions}$}}"
            lines += [r"\midrule", rf"\multicolumn{{{len(heads)}}}{{@{{}}l}}{{{words}}} \\"]
            lines += [" & ".join(_cells(row, comparison)) + r" \\" for row in _of_paper(of_split)]
    lines += [r"\bottomrule", r"\end{tabular}", rf"\caption{{{' '.join(_caption(comparison, notes))}}}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def _of_paper(rows: Sequence[ComparisonRow]) -> Iterator[ComparisonRow]:
    """Yield the mean of a method with several seeds, else its runs."""
    averaged = {row.method for row in rows if row.seed is None}
    return (row for row in rows if row.seed is None or row.method not in averaged)


def _cells(row: ComparisonRow, comparison: Comparison) -> Iterator[str]:
    yield escape(row.method) + ("" if row.label_free else " (uses labels)")
    yield str(row.seeds)
    yield _pair(row.greedy)
    yield _pair(row.pass_at_1)
    yield from map(_percent, row.maj_at_n)
    contrast = comparison.contrast_of(row)
    yield "--" if contrast is None else _difference(contrast.difference)
    if contrast is None or contrast.p_holm is None:
        yield "--"
    else:
        yield "$<0.001$" if contrast.p_holm < 0.0005 else f"{contrast.p_holm:.3f}"


def _percent(share: float | None) -> str:
    return "--" if share is None else f"{100 * share:.1f}"


def _pair(shares: Pair) -> str:
    return r" $\rightarrow$ ".join(map(_percent, shares))


def _difference(difference: Interval) -> str:
    if difference.low is None or difference.high is None:
        return minus(signed(difference.value))
    return f"{minus(signed(difference.value))} [{minus(signed(difference.low))}, {minus(signed(difference.high))}]"


def _caption(comparison: Comparison, notes: Sequence[str]) -> Iterator[str]:
    first = comparison.compared[0]
    yield rf"{escape(first.model)} on {escape(first.benchmark)}: percent before $\rightarrow$ after adapting."
    if comparison.contrasts:
        against = comparison.contrasts[0].against
        if against == BASE_VOTE:
            yield r"$\Delta$: one greedy answer after adapting minus the starting model's own vote, in points,"
        else:
            yield rf"$\Delta$: pass@1 after adapting minus that of {escape(against)}, in points,"
        yield r"with 95\,\% intervals."
        tests = sorted({contrast.test for contrast in comparison.contrasts if contrast.test})
        if tests:
            yield rf"$p$: {escape('; '.join(tests))}; corrected by Holm's method within each group of questions."
    for note in notes:
        yield escape(note[0].upper() + note[1:]) + "."
