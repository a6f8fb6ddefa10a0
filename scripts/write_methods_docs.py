#!/usr/bin/env python3
"""Write docs/methods.md from the rows of the table of methods and, where they exist, the tables of docs/results.

    python scripts/write_methods_docs.py

tests/test_docs.py checks that the page is what this script writes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mm_spine.commands.methods import changes
from mm_spine.config import ConfigError, MethodConfig
from mm_spine.methods.method import Method
from mm_spine.methods.table import METHODS, configure, own_options

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = DOCS / "methods.md"

HEAD = """\
# Methods

Written by `scripts/write_methods_docs.py` from the table of methods (`mm_spine/methods/table.py`) and from the tables
under `docs/results/`. To change this page, edit these and run the script again.

A method is a row of choices in one common algorithm: sample several answers to each question, vote, give each answer a
reward, turn rewards into advantages, choose and weigh the tokens that train, and minimise a loss. No row but those that
say so reads a label.

```bash
mm-spine methods                                            # the list
mm-spine methods spine                                      # formula, source and options of one
mm-spine adapt digits --method ttrl --output runs/ttrl
```
"""

CHOOSING = """\
## How to choose

- Begin with `ttrl`, which changes least, and with `none`, the vote of the starting model. A run whose greedy answers
  end at that vote saves its samples; one that ends below it gives less than voting does without training. With labels
  `mm-spine adapt` compares the two at the end of a run; without labels, its forecast says whether to try.
- Compare a method that selects tokens with `random-mask`: it trains as many tokens, drawn at random.
- Compare rewards with `ttrl` at the same learning rate and seeds: `mm-spine compare`.
- Other published results are of other models, data and settings. What a row is reported to do says where to look, not
  what it will do; "measured here" is of one small benchmark.
- Cost is beside one pass of sampling and one update a step, which every method has. Token entropies cost nothing with
  the sampler `hf`, and with `vllm` one forward over all responses. A KL term holds a second model, the starting one,
  and computes its log-probs at the tokens that train.
"""

GROUPS = {
    "The common algorithm, and other options of it": (),
    "Reward": ("reward",),
    "Credit": ("credit",),
    "Tokens, their weights, the band": ("tokens", "token weights", "band"),
    "Terms and loss": ("loss", "memory"),
    "Sampling and replay": ("sampling", "replay"),
}
"""Heading -> what rows of that group change, in the order in which the groups are printed."""

DECISIVE = ("sampling", "replay", "reward", "credit", "loss", "memory", "band", "tokens", "token weights")
"""What a row is grouped by: the first of these that it changes. One that changes none is in the first group."""

NOT_BUILT = {
    "AEPO (arXiv 2510.08141)": "it trains on further responses drawn at another temperature, which are none of the "
    "policy that is trained; `entrocraft` leaves out responses by their advantage while the entropy is out of range",
    "RLFR (arXiv 2510.10201)": "its reward is measured in a flow field of hidden states that is fitted to expert data "
    "and to responses that were checked against right answers",
    "TRAPO (arXiv 2512.17636)": "it trains on prefixes of expert solutions",
    "CalibRL (arXiv 2602.20197)": "it calibrates updates by expert trajectories",
    "SPEAR (arXiv 2509.22601)": "it is made for agents that call tools over several turns, with a reward for the calls",
    "process-reward and preference methods": "they need labels of steps, or pairs with a preference",
}
"""Methods of the entropy literature that have no row, and why: no text gives them for questions without labels."""


def page() -> str:
    """Return the text of docs/methods.md."""
    groups = grouped()
    parts = [HEAD, CHOOSING, overview(groups)]
    measured = Measured(DOCS / "results")
    for heading, names in groups.items():
        parts += [f"## {heading}\n", *(section(name, METHODS[name], measured) for name in names)]
    parts += ["## Not built, because\n", "\n".join(f"- {name}: {why}." for name, why in NOT_BUILT.items()) + "\n"]
    return "\n".join(parts)


def grouped() -> dict[str, list[str]]:
    """Return heading -> names of its methods, in the order of the table; headings without one are left out."""
    found: dict[str, list[str]] = {heading: [] for heading in GROUPS}
    for name, row in METHODS.items():
        changed = changes(row).split(", ")
        decisive = next((aspect for aspect in DECISIVE if aspect in changed), None)
        heading = next((h for h, aspects in GROUPS.items() if decisive in aspects), next(iter(GROUPS)))
        found[heading].append(name)
    return {heading: names for heading, names in found.items() if names}


def overview(groups: Mapping[str, Sequence[str]]) -> str:
    """Write one table of all methods."""
    lines = ["| method | what it does | changes | further cost |", "|---|---|---|---|"]
    for names in groups.values():
        for name in names:
            row = METHODS[name]
            cost = "; ".join(costs(name, row)) or "–"
            lines.append(f"| [`{name}`](#{name}) | {in_cell(row.summary)} | {changes(row)} | {in_cell(cost)} |")
    return "## All methods\n\n" + "\n".join(lines) + "\n"


def in_cell(text: str) -> str:
    return text.replace("|", "\\|")


def costs(name: str, row: Method) -> Iterator[str]:
    """Yield what a step of the method costs beyond sampling and one update."""
    if not row.trains:
        return
    options = configure({"method": {"name": name}}).method
    if row.sampling or row.growth is not None:
        yield "its own sampling"
    if row.replay is not None:
        yield "earlier rollouts are trained again"
    if row.asks is not None:
        yield "one forward over every response with another answer"
    if row.judge is not None:
        yield "another model over images and answers"
    if row.entropies:
        yield "token entropies"
    if row.statistic is not None:
        yield "a statistic of every token: one forward more"
    if any(term.statistic is not None for term in row.terms(options)):
        yield "a statistic of the distribution at each token"
    if any(term.anchored for term in row.terms(options)):
        yield "a second model, the anchor, and its log-probs"
    if options.kl != "none":
        yield f"KL to the starting model ({options.kl})"
    if row.remember is not None:
        yield "a memory across steps"


def section(name: str, row: Method, measured: Measured) -> str:
    """Write the section of one method."""
    labels = "" if row.label_free else " It reads the labels: a control, not a method."
    lines = [f"### {name}\n", f"{row.summary}.{labels}\n"]
    if row.formula:
        lines += ["```text", row.formula, "```\n"]
    facts = {
        "Source": row.source if row.source != "-" else "",
        "Changes": changes(row),
        "Needs": needs(name, row),
        "Cost": "; ".join(costs(name, row)),
        "Options of its own": "; ".join(described(row, key) for key in own_options(row)),
        "Defaults that it changes": ", ".join(changed(row)),
        "Ours": row.ours,
        "Reported": row.reported,
        "Measured here": measured.of(name),
    }
    lines += [f"- {title}: {text}" for title, text in facts.items() if text]
    return "\n".join(lines) + "\n"


def needs(name: str, row: Method) -> str:
    """Return what must be given before the method runs; empty where its defaults suffice."""
    if not row.label_free:
        return "the labels (`--allow-labels`)"
    try:
        if row.check is not None:
            row.check(configure({"method": {"name": name}}).method)
    except ConfigError as error:
        return str(error).partition(": ")[2] or str(error)
    return ""


def described(row: Method, key: str) -> str:
    field = row.section.model_fields[key]
    default = row.options.get(key, field.default)
    return f"`method.{key}` = {'null' if default is None else default} ({field.description})"


def changed(row: Method) -> Iterator[str]:
    """Yield the defaults of all methods that this one replaces."""
    for key, value in row.options.items():
        field = MethodConfig.model_fields.get(key)
        if field is not None and field.default != value:
            yield f"`method.{key}={value}` (usually {field.default})"
    yield from (f"`sampling.{key}`" for key in row.sampling)


class Measured:
    """Quotes what the pages under docs/results say of each method; nothing where a page does not exist."""

    def __init__(self, folder: Path) -> None:
        self._rows = {name: rows_of(folder / f"{name}.md") for name in ("digits", "catalogue", "frontier")}

    def of(self, name: str) -> str:
        """Return the figures of one method with links to where they stand."""
        return " ".join(filter(None, (self._catalogue(name) or self._digits(name), self._frontier(name))))

    def _catalogue(self, name: str) -> str:
        said = [
            f"{row['rate']} rate, {row['seeds']} {'seed' if row['seeds'] == '1' else 'seeds'}: adapted pass@1 "
            f"{row['adapted']}, held-out {row['held-out']}{against_ttrl(row)}"
            for row in self._rows["catalogue"]
            if row.get("method") == f"`{name}`" and "rate" in row
        ]
        return f"[the catalogue](results/catalogue.md): {'; '.join(said)}." if said else ""

    def _digits(self, name: str) -> str:
        rows = [row for row in self._rows["digits"] if row.get("method") == name]
        levels = [row["pass@1"] for row in rows if "greedy" in row and "pass@1" in row]
        gains = [row["mean gain"] for row in rows if row.get("measure") == "pass@1" and "mean gain" in row]
        if len(levels) < 2 or len(gains) < 2:
            return ""
        return (
            f"[digits](results/digits.md), pass@1 in percent: adapted {levels[0]} ({gains[0]}), held-out {levels[1]} "
            f"({gains[1]})."
        )

    def _frontier(self, name: str) -> str:
        rows = [row for row in self._rows["frontier"] if row.get("method") == f"`{name}`"]
        said = [
            f"{row['heading']}: all seeds gain up to {row['gains up to']}, a run ends below at {row['broke at']}"
            for row in rows
            if "gains up to" in row
        ]
        return f"[Learning rates](results/frontier.md), multiples of the default: {'; '.join(said)}." if said else ""


def against_ttrl(row: Mapping[str, Any]) -> str:
    """Write the differences from `ttrl` on adapted and held-out questions; nothing in its own row."""
    adapted, held_out = plain(row["adapted − ttrl"]), plain(row["held-out − ttrl"])
    return "" if adapted == held_out == "–" else f", against `ttrl` {adapted} and {held_out}"


def plain(cell: str) -> str:
    return cell.replace("**", "")


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Return the rows of all tables of a page by column, each with the heading above it; none without the page."""
    if not path.is_file():
        return []
    found: list[dict[str, Any]] = []
    heading, header = "", list[str]()
    for line in path.read_text().splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] if line.startswith("|") else []
        if not cells:
            header = []
        elif not header:
            header = cells
        elif not set("".join(cells)) <= set("-: "):
            found.append({"heading": heading, **dict(zip(header, cells, strict=True))})
    return found


if __name__ == "__main__":
    PAGE.write_text(page())
