#!/usr/bin/env python3
"""Write docs/config.md from the fields, docstrings and defaults of `mm_spine/config` and of the methods' own options.

    python scripts/write_config_docs.py

tests/test_docs.py checks that the page is what this script writes.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from mm_spine import config
from mm_spine.config import MethodConfig, RunConfig
from mm_spine.methods.table import METHODS, own_options

PAGE = Path(__file__).resolve().parents[1] / "docs" / "config.md"

HEAD = """\
# Configuration

Written by `scripts/write_config_docs.py` from the package `mm_spine.config` and from the sections of the methods' rows
(`mm_spine/methods/`). To change this page, edit these modules and run the script again.

A run is configured by one tree of keys. Its layers, each overriding those before it: the defaults below; the options
of the method (`mm-spine methods`); the YAML file (a benchmark's name stands for its file in `configs/`, a folder for
`configs/own.yaml`); `--method` and `--seed`; the `KEY=VALUE` arguments in their order.

```bash
mm-spine adapt digits --output runs/a --method ttrl --seed 1 optim.steps=24 sampling.votes=32
mm-spine adapt digits --dry-run sampling.backend=vllm evaluation.lmms_eval=[mm_spine_digits_held_out]
```

Values are read as YAML. `method: ttrl` is short for `method: {name: ttrl}`, `prompt: short` for
`prompt: {style: short}`, `votes: 64` for `votes: {max: 64}`. A wrong key or value is reported before any model loads;
the message names the key and the nearest valid one. `--dry-run` prints the resolved tree. A run saves it as
`config.yaml`, a file that `mm-spine adapt` accepts in turn.
"""

RANGES = {
    "Share": "in (0, 1]",
    "Positive": "above 0",
    "NonNegative": "0 or more",
    "Count": "1 or more",
    "Natural": "0 or more",
    "Votes": "2 or more",
    "UpToOne": "in [0, 1]",
    "BelowOne": "in [0, 1)",
    "Budget": "1 or more, or `auto`",
    "Interval": "0 or more, or `auto`",
}
"""What each annotated number allows."""

HEADER = ("| key | meaning | allowed | default |", "|---|---|---|---|")

NUMBERS = {int: "integer", float: "number", bool: "true, false", str: "text", Path: "path"}


def page() -> str:
    """The text of docs/config.md."""
    return "\n".join([HEAD, *(part for name, model in sections() for part in parts(name, model))])


def parts(name: str, model: type[BaseModel]) -> Iterator[str]:
    """One section, and below the options of all methods those that only some of them have."""
    yield section(name, model)
    if model is not MethodConfig:
        return
    having: dict[type[MethodConfig], list[str]] = {}
    for method, made in METHODS.items():
        if own_options(made):
            having.setdefault(made.section, []).append(method)
    for own, methods in having.items():
        yield own_section(own, methods)


def own_section(own: type[MethodConfig], methods: list[str]) -> str:
    """The options that only `methods` have; they are not valid for any other."""
    named = ", ".join(f"`{method}`" for method in methods)
    rows = [row("method.", name, own) for name in own.model_fields if name not in MethodConfig.model_fields]
    return "\n".join([f"### Only for {named}\n", inspect.cleandoc(str(own.__doc__)), "", *HEADER, *rows, ""])


def sections(model: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """(dotted name, model) of the tree's sections, the root first, each before those inside it."""
    yield prefix, model
    for name, field in model.model_fields.items():
        if (inner := inner_model(field)) is not None:
            yield from sections(inner, f"{prefix}{name}.")


def inner_model(field: FieldInfo) -> type[BaseModel] | None:
    """The section that a field holds, None for a plain value."""
    candidates = (field.annotation, *get_args(field.annotation))
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)


def section(prefix: str, model: type[BaseModel]) -> str:
    """The heading, the docstring and the table of one section; `prefix` is "" or ends with a dot."""
    title = f"`{prefix.rstrip('.')}`" if prefix else "The root"
    rows = [row(prefix, name, model) for name in model.model_fields]
    return "\n".join([f"## {title}\n", *words(model), "", *HEADER, *rows, ""])


def words(model: type[BaseModel]) -> list[str]:
    """The docstrings of the section and of what it extends, the general one first."""
    ours = [cls for cls in reversed(model.__mro__) if issubclass(cls, config.Section) and cls is not config.Section]
    return ["\n\n".join(inspect.cleandoc(str(cls.__doc__)) for cls in ours if "__doc__" in vars(cls))]


def row(prefix: str, name: str, model: type[BaseModel]) -> str:
    """One line of the table."""
    field = model.model_fields[name]
    if inner_model(field) is not None:
        optional = NoneType in get_args(field.annotation)
        cells = (f"section [below](#{anchor(prefix + name)})", "null" if optional else "")
    else:
        cells = (allowed(model, name), shown(field.default))
    return " | ".join((f"| `{prefix}{name}`", str(field.description), *cells)) + " |"


def anchor(name: str) -> str:
    """GitHub's anchor of a section's heading."""
    return re.sub(r"[^\w-]", "", name.lower())


def allowed(model: type[BaseModel], name: str) -> str:
    """What the field takes, by the annotation as it is written."""
    written = annotations(model)[name]
    annotation = model.model_fields[name].annotation
    base = written.removesuffix(" | None")
    if base in ("Budget", "Interval"):
        return RANGES[base]
    found = f"{NUMBERS[plain(annotation)]} {RANGES[base]}" if base in RANGES else described(plain(annotation), base)
    return found + (", or null" if base != written else "")


def described(annotation: Any, written: str) -> str:
    """Choices spelled out, pairs and lists by their members."""
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(annotation))
    if get_origin(annotation) is tuple:
        inside = get_args(annotation)
        if inside[-1] is Ellipsis:
            members = described(inside[0], "")
            return "a list of texts" if members == "text" else f"a list of {members}"
        kind = RANGES[written.removeprefix("tuple[").split(",")[0]]
        return f"two numbers {kind}"
    if get_origin(annotation) is dict:
        return "names with values"
    return NUMBERS[annotation]


def plain(annotation: Any) -> Any:
    """An annotation without Annotated and None around it."""
    if get_origin(annotation) in (Union, UnionType):
        return plain(next(part for part in get_args(annotation) if part is not NoneType))
    return plain(get_args(annotation)[0]) if get_origin(annotation) is Annotated else annotation


def annotations(model: type[BaseModel]) -> dict[str, str]:
    """Field -> its annotation as the source has it, inherited ones included."""
    found: dict[str, str] = {}
    for cls in reversed(model.__mro__):
        if issubclass(cls, config.Section):
            (tree,) = ast.parse(inspect.getsource(cls)).body
            assert isinstance(tree, ast.ClassDef)
            found |= {
                node.target.id: ast.unparse(node.annotation)
                for node in tree.body
                if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
            }
    return found


def shown(value: Any) -> str:
    """A default as YAML has it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    return f"`{value}`" if isinstance(value, str) else str(value)


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page())
