"""`mm-spine methods` and `mm-spine methods NAME`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import Field, fields
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Column, Table

from mm_spine.commands import printing
from mm_spine.commands.options import Plugins
from mm_spine.config import MethodConfig

if TYPE_CHECKING:
    from mm_spine.methods.method import Method

ASPECTS = {
    "growth": "sampling",
    "statistic": "statistics",
    "asks": "a further forward",
    "judge": "another model",
    "policy_mask": "tokens",
    "band_mask": "band",
    "bounds": "band",
    "choice": "token weights",
    "objective": "loss",
    "step_loss": "loss",
    "terms": "loss",
    "anchor_decay": "loss",
    "remember": "memory",
}
"""Field of a row -> what a method that sets it changes, where that is not the field's name."""

NOTHING = "the common algorithm"
UNTRAINED = "no training"


def methods(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Print all about this method.")] = None,
    plugin: Plugins = None,
) -> None:
    """List the methods and controls by what they change; with a NAME its formula, source and options."""
    from mm_spine.methods.table import METHODS, find

    if name is not None:
        for line in method_lines(name, find(name)):
            printing.print_line(line)
        return
    table = Table("method", "what it does", "source", Column("own defaults", overflow="fold"))
    for changed, names in grouped(METHODS).items():
        table.add_section()
        table.add_row(f"[bold]{changed}[/bold]")
        for each in names:
            table.add_row(*map(escape, (each, *cells(METHODS[each]))))
    printing.console.print(table)
    common = ", ".join(f"{key}={value}" for key, value in MethodConfig().model_dump().items() if key != "name")
    printing.console.print(f"options (method.KEY=VALUE) and their common defaults: {common}", markup=False)
    for line in benchmark_lines():
        printing.print_line(line)
    printing.print_line("formula, source and options of one: mm-spine methods NAME")


def changes(row: Method) -> str:
    """Return what a method changes of the common algorithm, in its order: "tokens, band"."""
    if not row.trains:
        return UNTRAINED
    found = ["sampling"] if row.sampling else []
    found += [ASPECTS.get(field.name, field.name) for field in makers() if getattr(row, field.name) != field.default]
    return ", ".join(dict.fromkeys(found)) or NOTHING


def makers() -> list[Field[Any]]:
    """Return the fields of a row that make its rules, in the order of the algorithm."""
    from mm_spine.methods.method import Method

    return [field for field in fields(Method) if field.name in ASPECTS or str(field.type).startswith("Maker")]


def grouped(rows: Mapping[str, Method]) -> dict[str, list[str]]:
    """Return what methods change -> their names; what comes first in the algorithm is first."""
    groups: dict[str, list[str]] = {}
    for name, row in rows.items():
        groups.setdefault(changes(row), []).append(name)
    order = [UNTRAINED, NOTHING, "sampling", *(ASPECTS.get(field.name, field.name) for field in makers())]
    return dict(sorted(groups.items(), key=lambda group: [order.index(part) for part in group[0].split(", ")]))


def cells(row: Method) -> tuple[str, str, str]:
    """Return a method's line of the list, without its name."""
    labels = "" if row.label_free else " (reads labels)"
    own = ", ".join(f"{key}={value}" for key, value in own_defaults(row).items())
    return row.summary + labels, row.source, own


def own_defaults(row: Method) -> dict[str, Any]:
    """Return what a method's defaults have beyond those of all methods: other values, and options of its own."""
    from mm_spine.methods.table import own_options

    further = {key: row.section.model_fields[key].default for key in own_options(row)}
    sampling = {f"sampling.{key}": value for key, value in row.sampling.items()}
    return {**further, **row.options, **sampling}


def method_lines(name: str, row: Method) -> Iterator[str]:
    """Yield a method's formula, source and options, its own with their meaning."""
    from mm_spine.methods.table import own_options

    yield f"{name}: {row.summary}{'' if row.label_free else ' (reads labels)'}"
    yield f"source: {row.source}"
    yield f"changes: {changes(row)}"
    if row.formula:
        yield from ("", "formula", *(f"  {line}" for line in row.formula.splitlines()))
    if row.ours:
        yield from ("", "ours", f"  {row.ours}")
    if row.reported:
        yield from ("", "reported", f"  {row.reported}")
    if further := own_options(row):
        yield from ("", "options of its own (method.KEY=VALUE)")
        yield from (_described(row, key) for key in further)
    common = {
        f"method.{key}": (value, field.default)
        for key, value in row.options.items()
        if (field := MethodConfig.model_fields.get(key)) is not None and value != field.default
    }
    if common or row.sampling:
        yield from ("", "defaults that it changes")
        yield from (f"  {key}={value} (usually {usual})" for key, (value, usual) in common.items())
        yield from (f"  sampling.{key}={value}" for key, value in row.sampling.items())
    yield from ("", "all other options: mm-spine methods, docs/config.md")


def _described(row: Method, key: str) -> str:
    field = row.section.model_fields[key]
    return f"  {key}={row.options.get(key, field.default)}  {field.description}"


def benchmark_lines() -> Iterator[str]:
    """Yield a line for each benchmark whose configuration sets options for every method."""
    from mm_spine.config.layers import read_config
    from mm_spine.configs import shipped, shipped_names

    for name in shipped_names():
        path = shipped(name)
        section = read_config(path).get("method") if path else None
        if isinstance(section, Mapping) and (set_here := [f"{k}={v}" for k, v in section.items() if k != "name"]):
            yield f"benchmark {name} sets {', '.join(set_here)} for every method (configs/{name}.yaml)"
