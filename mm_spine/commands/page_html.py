"""What the page of `mm-spine serve` shows, as HTML: the model, previews of images, the answer. All text is escaped."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment

from mm_spine.commands.ask_session import AskSettings
from mm_spine.commands.page_export import downloads
from mm_spine.commands.question_queue import MAX_IMAGES, PageState, Upload, without_id
from mm_spine.policy.model import Policy
from mm_spine.processors.vision import BadQuestion, open_image
from mm_spine.reporting.entropy_colours import MARKS, Token, choices, shade
from mm_spine.reporting.thumbnails import data_address

SIDE = 240
"""Longest side of a preview in pixels."""

KINDS = {
    "box": "a box in the image",
    "choice": "one of the choices",
    "integer": "a whole number",
    "math": "a mathematical value",
    "math_or_choice": "a mathematical value or a letter",
    "medical": "a short medical term",
    "named": "a listed name",
    "text": "a short text",
    "typed": "a number or a choice",
    "vqa": "a short text",
    "yes_no": "yes or no",
    "yes_no_maybe": "yes, no or maybe",
}
"""Answer kind -> what it is, in words. A kind of a plugin is shown by its name."""


class Preview(NamedTuple):
    """One uploaded image: its name, a small copy as a `data:` address and its size, or why it cannot be read."""

    name: str
    address: str = ""
    size: str = ""
    problem: str = ""


def page_of(state: PageState) -> str:
    """Render the answer so far."""
    asked, result = state.asked, state.result
    files = downloads(asked, result) if state.done and asked and result else ()
    kind = "" if asked is None else asked.question.spec.kind
    return _html("answer.j2", state=state, kind=kind, kind_words=KINDS.get(kind, kind), files=files, marks=MARKS)


def header_of(policy: Policy, settings: AskSettings) -> str:
    """Render the name of the model, its size, number type and device."""
    # The page may be open to others: of a folder only the name is shown.
    name = Path(settings.model).name if Path(settings.model).exists() else settings.model
    parameters = sum(weight.numel() for weight in policy.model.parameters())
    facts = [f"{parameters / 1e6:,.1f} million parameters", settings.config.model.dtype, str(policy.device)]
    return _html("model.j2", name=name, facts=facts)


def preview_of(uploads: Sequence[Upload]) -> str:
    """Render small copies of the first `MAX_IMAGES` uploads as the model gets them, or why one cannot be read."""
    return _html("preview.j2", images=[_preview(upload) for upload in uploads[:MAX_IMAGES]]) if uploads else ""


def _preview(upload: Upload) -> Preview:
    try:
        picture = open_image(upload, "page").copy()
    except BadQuestion as error:
        return Preview(upload.name, problem=without_id(error, "page"))
    size = f"{picture.width} × {picture.height}"
    picture.thumbnail((SIDE, SIDE))
    out = io.BytesIO()
    picture.save(out, "PNG")
    return Preview(upload.name, data_address("image/png", out.getvalue()), size)


def resource(name: str) -> str:
    """Read a file beside the templates of the pages."""
    return (resources.files("mm_spine.reporting") / name).read_text(encoding="utf-8")


def _html(template: str, **values: Any) -> str:
    html: str = _template(template).render(**values)
    # gradio's HTML component would evaluate these characters as a template of its own.
    return html.replace("$", "&#36;").replace("{", "&#123;").replace("}", "&#125;").replace("`", "&#96;")


@cache
def _template(name: str) -> Any:
    templates = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    templates.filters |= {"shade": shade, "tip": _tip}
    return templates.from_string(resource(name))


def _tip(token: Token) -> str:
    fork = " · fork" if token.fork else ""
    return f"{token.entropy:.2f} nats ≈ {choices(token.entropy):.1f} equal choices{fork}"
