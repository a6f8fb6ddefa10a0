"""The frame of the pages: templates, style, script, and the policy that forbids every request.

A page's policy (Content-Security-Policy) lets the page's own script run, and nothing be loaded.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from mm_spine.files import write_bytes
from mm_spine.reporting import contrasts, formats
from mm_spine.reporting.changed_questions import QuestionSide
from mm_spine.words import visible

# Signs that stand for characters that cannot be seen in a table of tokens.
_VISIBLE = {" ": "␣", "\n": "⏎", "\t": "⇥"}


def load_template(name: str) -> Template:
    """Load a template of the folder `pages`: all values are escaped, and an undefined name is an error."""
    environment = Environment(
        loader=PackageLoader("mm_spine.reporting", "pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Ids and responses may hold control characters and marks that change the direction of text.
        finalize=lambda value: visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    )
    environment.filters |= FILTERS
    return environment.get_template(name)


def frame(title: str) -> dict[str, Any]:
    """Return what every page needs: title, style, script and policy."""
    folder = Path(__file__).parent / "pages"
    css, script = ((folder / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"  # these two do not follow default-src
    )
    return {"title": title, "css": Markup(css), "script": Markup(script), "policy": policy}


def write_page(path: Path, text: str) -> Path:
    """Replace the file `path` by the page and return `path`."""
    # Lone surrogates, which UTF-8 cannot hold, become question marks.
    return write_bytes(path, text.encode("utf-8", "replace"))


def _visible(text: str) -> str:
    """Replace spaces and line ends by signs that can be seen, and other characters without a shape by their number."""
    return "".join(_VISIBLE.get(c, c if c.isprintable() else f"U+{ord(c):04X}") for c in text) or "∅"


def _vote(side: QuestionSide) -> str:
    if side.vote is None:
        return "none"
    return f"{formats.shortened(side.vote, 40, 20)} ({side.votes} of {side.samples})"


FILTERS = {
    "count": formats.count,
    "percent": formats.percent,
    "percent_bounds": formats.percent_bounds,
    "signed": formats.signed,
    "signed_bounds": formats.signed_bounds,
    "pair": formats.pair,
    "gain": formats.gain,
    "visible": _visible,
    "vote": _vote,
    "method": contrasts.method_words,
    "p": contrasts.p_words,
    "test": contrasts.test_words,
}
"""Filters that the templates may use."""
