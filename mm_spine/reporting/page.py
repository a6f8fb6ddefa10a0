"""The pages' frame: templates, style, script, and the policy: its own script runs, and nothing else is loaded."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from mm_spine.intervals import Interval
from mm_spine.reporting import compare, headline, tokens
from mm_spine.reporting.folder import replace_file


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
    return compare.bounds(value)


def _voted(side: Mapping[str, Any]) -> str:
    if side["vote"] is None:
        return "none"
    return f"{tokens.shortened(side['vote'], 40, 20)} ({side['votes']} of {side['samples']})"


def _signed_points(value: Interval) -> str:
    return compare.signed(value.value)


def _visible(text: str) -> str:
    """A token's spaces, line ends and tabs as signs that can be seen, other characters without a shape by number."""
    signs = {" ": "␣", "\n": "⏎", "\t": "⇥"}
    return "".join(signs.get(c, c if c.isprintable() else f"U+{ord(c):04X}") for c in text) or "∅"


def common(title: str) -> dict[str, Any]:
    """What both pages need: the style, the script, and the policy that lets this script run and nothing load."""
    folder = Path(__file__).parent / "pages"
    css, script = ((folder / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"  # these two do not follow default-src
    )
    return {"title": title, "css": Markup(css), "script": Markup(script), "policy": policy}


def write(path: Path, text: str) -> Path:
    """Replace `path` as a whole. Lone surrogates, which no file can hold, become question marks."""
    return replace_file(path, text.encode("utf-8", "replace"))


FILTERS = {
    "percent": headline.percent,
    "interval": _bounds,
    "signed": _signed,
    "points": _signed_points,
    "visible": _visible,
    "voted": _voted,
    "seed": compare.shown_seed,
    "pair": compare.shown_pair,
    "gain": compare.shown_gain,
}
