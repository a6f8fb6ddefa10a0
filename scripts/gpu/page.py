"""Write gpu.md from the content of gpu.json: a section for each phase, its tables and sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

REHEARSAL = "**A rehearsal on tiny shapes. It shows that every phase runs; no figure below says anything about a GPU.**"


def page(record: Mapping[str, Any]) -> str:
    """Return the page."""
    parts = ["# Measured on a GPU" if not record["rehearsal"] else "# Rehearsal of the check on a GPU"]
    parts += [REHEARSAL] if record["rehearsal"] else []
    parts.append(
        f"Written by `scripts/gpu_check.sh` ({record['started']}, commit {record['commit'] or 'unknown'}, "
        f"{record['seconds']:.0f} s of at most {record['limit_seconds']}). Compare ratios: one run, one machine."
    )
    parts.append(f"    {record['command']}")
    overview = [
        {"phase": each["title"], "": each["status"], "seconds": each["seconds"], "why": each["error"]}
        for each in record["phases"].values()
    ]
    parts.append(_table(overview))
    for each in record["phases"].values():
        parts += [f"## {each['title']}", *_section(each)]
    if record["wheels"]:
        parts += ["## Wheels that were carried", ", ".join(record["wheels"])]
    return "\n\n".join(parts) + "\n"


def _section(phase: Mapping[str, Any]) -> list[str]:
    parts = [] if phase["status"] == "ok" else [f"**{phase['status'].capitalize()}**: {phase['error']}"]
    for title, rows in phase["result"].get("tables", {}).items():
        parts += [f"**{title}**", _table(rows)]
    return [*parts, *phase["result"].get("says", ())]


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a Markdown table of all columns that a row has, in the order in which they first appear."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[_cell(row.get(name)) for name in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in (columns, ["---"] * len(columns), *cells))


def _cell(value: Any) -> str:
    """Write numbers with three to four significant digits, and nothing for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if value and (abs(value) < 1e-2 or abs(value) >= 1e6):
            return f"{value:.2e}"
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value).replace("|", "\\|").replace("\n", " ")
