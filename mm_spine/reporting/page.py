"""The pages' frame: templates, style, script, and the policy: its own script runs, and nothing else is loaded."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from mm_spine.intervals import Interval
from mm_spine.reporting import compare, headline, tokens


def template(name: str) -> Template:
    """A page of the folder `pages`; what is put into it is escaped, and a name that is not given is an error."""
    pages = Environment(
        loader=PackageLoader("mm_spine.reporting", "pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters |= FILTERS
    return pages.get_template(name)


def _bounds(value: Interval | None) -> str:
    if value is None or value.low is None or value.high is None:
        return ""
    return f"[{100 * value.low:.1f}, {100 * value.high:.1f}]"


def _signed(value: Interval) -> str:
    return "" if value.low is None or value.high is None else f"[{100 * value.low:+.1f}, {100 * value.high:+.1f}]"


def _voted(side: Mapping[str, Any]) -> str:
    if side["vote"] is None:
        return "none"
    return f"{tokens.shortened(side['vote'], 40, 20)} ({side['votes']} of {side['samples']})"


def _visible(text: str) -> str:
    """A token's spaces, line ends and tabs as signs that can be seen."""
    return text.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥") or "∅"


def common(title: str) -> dict[str, Any]:
    """What both pages need: the style, the script, and the policy that lets this script run and nothing load."""
    folder = Path(__file__).parent / "pages"
    css, script = ((folder / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return {"title": title, "css": Markup(css), "script": Markup(script), "policy": policy}


def write(path: Path, text: str) -> Path:
    """Replace `path` as a whole. Lone surrogates, which no file can hold, become question marks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        aside.write_bytes(text.encode("utf-8", "replace"))
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    return path


FILTERS = {
    "percent": headline.percent,
    "interval": _bounds,
    "signed": _signed,
    "visible": _visible,
    "voted": _voted,
    "seed": compare.shown_seed,
    "pair": compare.shown_pair,
    "gain": compare.shown_gain,
}
