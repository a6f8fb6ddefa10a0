"""`mm-spine methods`."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table

from mm_spine.commands import printing
from mm_spine.config import MethodConfig


def methods() -> None:
    """List the methods and controls, with the options that each sets."""
    from mm_spine.config.layers import read_config
    from mm_spine.configs import shipped, shipped_names
    from mm_spine.methods.table import METHODS

    table = Table("method", "what it does", "source", "own defaults")
    for name, method in METHODS.items():
        options = ", ".join(f"{key}={value}" for key, value in method.options.items())
        labels = "" if method.label_free else " (reads labels)"
        table.add_row(name, method.summary + labels, method.source, options)
    printing.console.print(table)
    common = ", ".join(f"{key}={value}" for key, value in MethodConfig().model_dump().items() if key != "name")
    printing.console.print(f"options (method.KEY=VALUE) and their common defaults: {common}", markup=False)
    for name in shipped_names():
        path = shipped(name)
        section = read_config(path).get("method") if path else None
        if isinstance(section, Mapping) and (changes := [f"{k}={v}" for k, v in section.items() if k != "name"]):
            printing.print_line(f"benchmark {name} sets {', '.join(changes)} for every method (configs/{name}.yaml)")
