"""What the pages under docs/ say is so: examples run, links resolve; keys, fields and messages are the code's."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import re
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from loaded_scripts import load_script
from test_readme import blocks, check_commands

from mm_spine import evaluation
from mm_spine.files.rollout_table import ROLLOUT_SCHEMA
from mm_spine.methods.table import METHODS
from mm_spine.types import StepReport

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(path for path in (ROOT / "docs").glob("*.md"))
RUN = ("extending.md", "python.md", "slake_3b.md")
"""Pages whose Python blocks are run; a block of text right behind one is what it prints."""


def examples(page: str) -> list[tuple[int, str, str | None]]:
    """(line, code, what it prints or None) of each Python block."""
    pattern = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL)
    return [(page.count("\n", 0, found.start()) + 1, found[1], found[2]) for found in pattern.finditer(page)]


@pytest.mark.parametrize("name", RUN)
def test_examples_run_and_print_what_stands_below_them(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tables: None
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "docs"}
    found = examples((ROOT / "docs" / name).read_text())
    assert found
    for line, code, printed in found:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile("\n" * line + code, name, "exec"), names)  # its own text, from this checkout
        if printed is not None:
            assert out.getvalue() == printed, f"{name}, line {line}"


def test_no_page_has_python_that_is_not_run() -> None:
    # Those of data.md are run by test_own_trial.py, between the commands.
    assert {page.name for page in PAGES if blocks(page.read_text(), "python")} <= {*RUN, "data.md"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_can_be_given(page: Path, tables: None, monkeypatch: pytest.MonkeyPatch) -> None:
    # A page about plugins loads one, by its path in the checkout.
    monkeypatch.chdir(ROOT)
    check_commands(page.read_text(), ROOT)


def links(page: Path) -> list[str]:
    """Targets of the links and images of a page, code left out."""
    text = re.sub(r"^```.*?^```$|`[^`\n]*`", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"\]\(([^)\s]+)\)", text)


def headings(page: Path) -> set[str]:
    """GitHub's anchors of a page."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_links_resolve(page: Path) -> None:
    for link in links(page):
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in headings(target), f"{page.name}: {link}"


def test_every_page_is_linked_from_the_readme() -> None:
    linked = {link.partition("#")[0] for link in links(ROOT / "README.md")}
    assert {f"docs/{page.name}" for page in PAGES} <= linked


def test_the_page_of_the_configuration_is_what_its_script_writes() -> None:
    written = load_script("write_config_docs").page()
    assert (ROOT / "docs" / "config.md").read_text() == written, "run python scripts/write_config_docs.py"


def test_the_page_of_the_methods_is_what_its_script_writes() -> None:
    written = load_script("write_methods_docs").page()
    assert (ROOT / "docs" / "methods.md").read_text() == written, "run python scripts/write_methods_docs.py"


def test_the_page_of_the_methods_says_all_of_each_row_and_quotes_only_tables_that_exist(tmp_path: Path) -> None:
    script = load_script("write_methods_docs")
    assert sorted(name for names in script.grouped().values() for name in names) == sorted(METHODS)
    page = (ROOT / "docs" / "methods.md").read_text()
    for name, row in METHODS.items():
        section = page.split(f"\n### {name}\n")[1].split("\n## ")[0].split("\n### ")[0]
        assert all(text in section for text in (row.formula, row.ours, row.reported))
        assert all(f"`method.{key}` = " in section for key in script.own_options(row))
    assert script.Measured(tmp_path).of("spine") == ""
    head = "| method | rate | seeds | adapted | held-out | adapted − ttrl | held-out − ttrl |"
    (tmp_path / "catalogue.md").write_text(
        f"## Every row\n\n{head}\n| --- |{' ---: |' * 6}\n| `spine` | 4x | 8 | 50.0 → 63.0 | 40.0 → 53.0 | "
        "**+2.0 [+1.0, +3.0], p 0.01** | +0.1 [-1.0, +1.2], p 1 |\n"
    )
    (tmp_path / "frontier.md").write_text(
        "## 12 steps\n\n| method | gains up to | broke at |\n| --- | ---: | ---: |\n| `spine` | x2 | x4 |\n"
    )
    assert script.Measured(tmp_path).of("spine") == (
        "[the catalogue](results/catalogue.md): 4x rate, 8 seeds: adapted pass@1 50.0 → 63.0, held-out 40.0 → 53.0, "
        "against `ttrl` +2.0 [+1.0, +3.0], p 0.01 and +0.1 [-1.0, +1.2], p 1. [Learning rates](results/frontier.md), "
        "multiples of the default: 12 steps: all seeds gain up to x2, a run ends below at x4."
    )
    assert script.Measured(tmp_path).of("ttrl") == ""


def test_every_key_of_the_configuration_is_described() -> None:
    for prefix, model in load_script("write_config_docs").sections():
        for name, field in model.model_fields.items():
            assert field.description, f"{prefix}{name}"


def fields(page: str, heading: str) -> set[str]:
    """The names in the first column of a section's tables."""
    section = page.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return {name for row in rows for name in re.findall(r"`([\w.]+)`", row)}


@pytest.fixture(scope="module")
def outputs() -> str:
    return (ROOT / "docs" / "outputs.md").read_text()


def test_every_figure_of_a_step_is_described(outputs: str) -> None:
    assert fields(outputs, "steps.jsonl") == set(StepReport.__dataclass_fields__)


def test_every_column_of_the_rollouts_is_described(outputs: str) -> None:
    assert fields(outputs, "rollouts") == set(ROLLOUT_SCHEMA.names)


def test_every_field_of_a_verdict_is_described(outputs: str) -> None:
    assert fields(outputs, "evaluation/before.jsonl, evaluation/after.jsonl") == set(
        evaluation.Item.__dataclass_fields__
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small finished run."""
    from small import BASE, write_data, write_model

    from mm_spine.methods.table import configure
    from mm_spine.runs.run import run

    folder = tmp_path_factory.mktemp("docs")
    given = {"benchmark": str(write_data(folder / "data")), "model": {"path": str(write_model(folder / "model"))}}
    assert run(configure(BASE, given, {"optim": {"steps": 1}, "checkpoint": {"every": 1}}), folder / "run") is not None
    return folder / "run"


def test_every_key_of_the_summary_is_described(outputs: str, finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    named = fields(outputs, "summary.json")
    inner = {f"{name}.{key}" for name in ("seconds", "tokens", "image_cache") for key in summary[name]}
    metrics = set(summary["before"])
    assert named == summary.keys() - {"seconds", "tokens", "image_cache"} | inner | metrics


def test_every_key_of_timings_and_step_accuracy_is_described(outputs: str, finished: Path) -> None:
    timing = json.loads((finished / "timings.jsonl").read_text().splitlines()[0])
    accuracy = json.loads((finished / "evaluation" / "steps.jsonl").read_text().splitlines()[0])
    assert timing.keys() <= fields(outputs, "timings.jsonl")
    assert fields(outputs, "evaluation/steps.jsonl") == accuracy.keys()


def test_every_file_of_a_run_is_described(outputs: str, finished: Path) -> None:
    table = outputs.split("## The files")[1].split("\n## ")[0]
    for path in finished.iterdir():
        assert f"`{path.name}{'/' if path.is_dir() else ''}" in table, path.name


@cache
def sources() -> str:
    """The literal texts of the code, joined in order: what stands between the values of a message."""
    parts: list[str] = []
    for folder in ("mm_spine", "processors", "benchmarks", "scripts"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    parts.append("".join(p.value if isinstance(p, ast.Constant) else "\0" for p in node.values))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    parts.append(node.value)
    return "\n".join(parts)


OTHERS = ("operator torchvision::nms does not exist",)
"""Messages of other packages."""


def quoted(page: str) -> list[str]:
    """The messages of the FAQ: headings in code, `...` for what varies."""
    return re.findall(r"^### `(.+)`$", page, re.MULTILINE)


def test_every_message_of_the_faq_is_one_of_the_code() -> None:
    page, known = (ROOT / "docs" / "faq.md").read_text(), sources()
    messages = quoted(page)
    assert len(messages) > 20
    for message in messages:
        parts = [part.strip() for part in message.split("...") if part.strip()]
        assert parts
        missing = [part for part in parts if part not in known and message not in OTHERS]
        assert not missing, f"{message}: {missing}"


def test_a_message_that_the_code_lacks_would_be_seen() -> None:
    assert "this sentence is nowhere in the " + "code" not in sources()


def test_the_picture_is_one_that_browsers_draw() -> None:
    text = (ROOT / "docs" / "loop.svg").read_text()
    assert ElementTree.fromstring(text).tag.endswith("svg")
    assert not re.search(r"<script|href=\"http|@import|url\(http", text)


def test_paths_that_pages_name_exist() -> None:
    for page in [ROOT / "README.md", *PAGES]:
        named = set(
            re.findall(r"`((?:mm_spine|processors|benchmarks|configs|scripts|tests|docs)/[\w./-]+)`", page.read_text())
        )
        missing = sorted(name for name in named if not (ROOT / name).exists() and "sky" not in name)
        assert not missing, f"{page.name}: {missing}"
    assert os.access(ROOT / "scripts" / "write_config_docs.py", os.R_OK)


def definitions(path: Path) -> set[str]:
    """Return the functions, classes, methods (`Class.method`) and top-level names that a module defines."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def test_functions_that_the_page_of_the_architecture_names_are_in_their_files() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\|[^|]*\| `([\w./]+\.py)` \|([^|]*)\|", page, re.MULTILINE)
    named = [(path, name) for path, cell in rows for name in re.findall(r"`([\w.]+)`", cell)]
    missing = [f"{path}: {name}" for path, name in named if name not in definitions(ROOT / path)]
    assert len(named) > 50 and not missing, missing


def test_registers_that_pages_name_are_in_their_files() -> None:
    for page in (ROOT / "docs" / name for name in ("architecture.md", "extending.md")):
        named = re.findall(r"`([A-Z]{5,})`, `([\w./]+\.py)`", page.read_text())
        missing = [f"{path}: {name}" for name, path in named if name not in definitions(ROOT / path)]
        assert len(named) >= 7 and not missing, f"{page.name}: {missing}"
