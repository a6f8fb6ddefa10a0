"""Write the comparison as a LaTeX table, and text that LaTeX shows as it is."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from mm_spine.intervals import Interval
from mm_spine.measures import GREEDY, LABELS, PASS_AT_1
from mm_spine.reporting.column_sets import FurtherTable, TableRow
from mm_spine.reporting.compare import Comparison, ComparisonRow, majority_header, of_paper
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
    sections = []
    for split, title in SPLITS.items():
        if of_split := [row for row in compared if row.split == split]:
            lines = [" & ".join(_cells(row, comparison)) + r" \\" for row in of_paper(of_split)]
            sections.append((title, of_split[0].questions, lines))
    return _table(heads, sections, " ".join(_caption(comparison, notes)))


def latex_columns(comparison: Comparison, chosen: FurtherTable, notes: Sequence[str]) -> str:
    """Return further columns as a booktabs table, with the second line of their cells below each row."""
    if not comparison.compared:
        raise ValueError("none of these runs is finished, so there is no table to write")
    sections = [
        (section.title, section.questions, [line for row in section.rows for line in _lines(row)])
        for section in chosen.sections
    ]
    first = comparison.compared[0]
    words = [chosen.title, chosen.note, *notes]
    caption = [
        rf"{escape(first.model)} on {escape(first.benchmark)}.",
        *(f"{_shown(_sentence(each))}." for each in words),
    ]
    return _table(["Method", "Seeds", *map(_shown, chosen.heads)], sections, " ".join(caption))


def _table(heads: Sequence[str], sections: Sequence[tuple[str, int, Sequence[str]]], caption: str) -> str:
    """Return a table: `sections` are the title, the questions and the lines of each split."""
    lines = [r"% \usepackage{booktabs}", r"\begin{table}", r"\centering", r"\small"]
    lines += [r"\begin{tabular}{@{}l" + "r" * (len(heads) - 1) + "@{}}", r"\toprule", " & ".join(heads) + r" \\"]
    for title, questions, rows in sections:
        words = rf"\emph{{{title}, $n={questions}$}}"
        lines += [r"\midrule", rf"\multicolumn{{{len(heads)}}}{{@{{}}l}}{{{words}}} \\", *rows]
    lines += [r"\bottomrule", r"\end{tabular}", rf"\caption{{{caption}}}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def _lines(row: TableRow) -> Iterator[str]:
    yield " & ".join([escape(row.method), str(row.seeds), *(_shown(cell.text) for cell in row.cells)]) + r" \\"
    if any(cell.detail for cell in row.cells):
        below = [rf"{{\scriptsize {_shown(cell.detail)}}}" if cell.detail else "" for cell in row.cells]
        yield " & ".join(["", "", *below]) + r" \\"


_OWN_SIGNS = {"\u2192": r"$\rightarrow$", "\u2013": "--", "\u00a0": "~"}
"""Sign of our own tables -> its LaTeX."""


def _shown(text: str) -> str:
    """Return a text of our tables as LaTeX: signed numbers in mathematics, arrows and dashes in their form."""
    shown = re.sub(r"(?<![\w.,])[+-][\d.,]*\d", lambda found: minus(found[0]), escape(text))
    return "".join(_OWN_SIGNS.get(sign, sign) for sign in shown)


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _cells(row: ComparisonRow, comparison: Comparison) -> Iterator[str]:
    yield escape(row.method_text)
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
        yield escape(_sentence(note)) + "."
