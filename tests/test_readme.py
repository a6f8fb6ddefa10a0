"""What the README shows works as it stands there: the Python example, the commands, the line of a question file."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
from itertools import dropwhile
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image

from mm_spine import cli
from mm_spine.benchmarks.folder import load_table
from mm_spine.methods.table import METHODS
from mm_spine.runs.plan import load_config


@pytest.fixture(scope="module")
def readme(repository: Path) -> str:
    path = repository / "README.md"
    if not path.is_file():
        pytest.skip("README.md is not written yet")
    return path.read_text()


PROGRAMS = ("pip", "git", "cd", "torchrun", "deepspeed", "hf", "lmms-eval", "tensorboard", "trackio", "wandb", "head")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[list[str]]:
    """The words of every command in the bash blocks, comments left out and continued lines joined."""
    lines = "\n".join(blocks(text, "bash")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def test_the_example_adapts_and_saves_a_model(readme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = [block for block in blocks(readme, "python") if block.startswith("from mm_spine import")]
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "readme"}
    exec(compile(example, "README.md", "exec"), names)  # its own text, from this checkout
    assert [path.name for path in tmp_path.iterdir()] == ["adapted"]
    _loads(tmp_path / "adapted", names["policy"])


def _loads(folder: Path, policy: Any) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    AutoProcessor.from_pretrained(folder)
    saved = AutoModelForImageTextToText.from_pretrained(folder, dtype="float32").state_dict()
    adapted = policy.model.state_dict()
    assert saved.keys() == adapted.keys()
    assert all(saved[name].equal(adapted[name].cpu()) for name in saved)


def test_every_command_is_one_that_can_be_given(readme: str, repository: Path) -> None:
    assert {words[0].split("/")[0] for words in given(readme)} >= {"mm-spine", "scripts"}
    check_commands(readme, repository)


def given(text: str) -> list[list[str]]:
    """Its commands without the variables before them (MODEL=... scripts/...)."""
    return [list(dropwhile(lambda word: "=" in word, words)) for words in commands(text)]


def check_commands(text: str, repository: Path) -> None:
    """Fail for a command of the bash blocks that cannot be given as it stands."""
    for words in given(text):
        program = words[0]
        if program == "mm-spine":
            _can_be_parsed(words[1], words[2:])
        elif program.startswith("scripts/"):
            assert os.access(repository / program, os.X_OK), f"{program} is not an executable file"
        elif program.startswith("python") and words[1] == "-m":
            assert importlib.util.find_spec(words[2]) is not None, words
        elif program.startswith("python") and words[1] == "-c":
            compile(words[2], "-c", "exec")
        elif program.startswith("python"):
            assert (repository / words[1]).is_file(), words
        else:
            assert program in PROGRAMS, f"{shlex.join(words)}: unknown program"


def _can_be_parsed(name: str, arguments: list[str]) -> None:
    """The subcommand exists and takes these arguments; configurations among them are valid."""
    group: Any = typer.main.get_command(cli.app)
    assert name in group.commands, f"mm-spine {name}: no such command"
    given = group.commands[name].make_context(name, list(arguments)).params
    if name == "adapt":
        load_config(given["target"], given["overrides"] or (), given["method"], given["seed"])
    elif name == "evaluate":
        load_config(given["benchmark"], given["overrides"] or (), "none", given["seed"])


def test_a_command_that_is_wrong_would_be_seen() -> None:
    for name, arguments, message in (
        ("adpt", [], "no such command"),
        ("adapt", ["digits", "optim.rl=1"], "no such key"),
        ("adapt", ["digits", "--ouput", "x"], "No such option"),
        ("compare", [], "Missing parameter: runs"),
    ):
        with pytest.raises(Exception, match=message):
            _can_be_parsed(name, arguments)
    _can_be_parsed("adapt", ["digits", "optim.lr=1", "--output", "x"])


def test_scripts_and_modules_that_it_names_exist(readme: str, repository: Path) -> None:
    named = set(re.findall(r"\bscripts/\w+\.(?:sh|py)\b", readme))
    assert named and not [name for name in named if not (repository / name).is_file()]
    modules = set(re.findall(r"\bpython -m (mm_spine[\w.]*)|-m (mm_spine\.\w+)", readme))
    assert all(importlib.util.find_spec(a or b) for a, b in modules)


def test_its_table_of_methods_is_the_table_of_methods(readme: str) -> None:
    table = readme.split("## Methods")[1].split("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`([\w-]+)`", row.split("|")[1])}
    assert named == METHODS.keys()
    assert "docs/methods.md" in table


def test_its_question_file_is_read(readme: str, tmp_path: Path) -> None:
    (line,) = [block for block in blocks(readme, "json") if "prompt" in block]
    row = json.loads(line)
    image = tmp_path / row["image"]
    image.parent.mkdir(parents=True)
    Image.new("RGB", (56, 56)).save(image)
    (tmp_path / "questions.jsonl").write_text(line)
    labelled = load_table(tmp_path)
    (question,) = labelled.questions
    assert (labelled.problems, question.id, question.prompt) == ((), row["id"], row["prompt"])
    assert not labelled.key and "answer" not in row


def tree_paths(page: str) -> dict[str, str]:
    """Return path -> description of every line of the source tree; two spaces of indentation are one folder down."""
    (tree,) = [block for block in blocks(page, "") if block.startswith("mm_spine/")]
    found: dict[str, str] = {}
    folders: list[str] = []
    for line in tree.splitlines():
        name, description = line.split(maxsplit=1)
        depth = (len(line) - len(line.lstrip())) // 2
        folders[depth:] = [name.rstrip("/")]
        path = "/".join(folders)
        assert path not in found, f"docs/source.md lists {path} twice"
        found[path] = description
    return found


def source_paths(repository: Path) -> set[str]:
    """Return the folders and modules that the source tree must list. Launchers of benchmarks share one line."""
    links = {repository / "mm_spine" / name for name in ("processors", "benchmarks", "configs")}
    found = set()
    for top in ("mm_spine", "processors", "benchmarks", "configs", "scripts"):
        for folder, inner, files in os.walk(repository / top):
            inner[:] = [name for name in inner if Path(folder) / name not in links]
            modules = [name for name in files if name.endswith((".py", ".sh"))]
            paths = [Path(folder) if name == "__init__.py" else Path(folder) / name for name in modules]
            found |= {path.relative_to(repository).as_posix() for path in paths}
    launchers = {path for path in found if re.fullmatch(r"scripts/adapt_\w+\.sh", path)}
    return found - launchers | {"scripts/adapt_<benchmark>.sh"}


def test_the_source_tree_lists_every_module(repository: Path) -> None:
    missing = sorted(source_paths(repository) - tree_paths((repository / "docs" / "source.md").read_text()).keys())
    assert not missing, f"add a line to docs/source.md for each of {missing}"


def test_every_line_of_the_source_tree_exists_and_says_something(repository: Path) -> None:
    for path, description in tree_paths((repository / "docs" / "source.md").read_text()).items():
        if path != "scripts/adapt_<benchmark>.sh":
            assert (repository / path).exists(), f"docs/source.md lists {path}, which does not exist"
        assert len(description) > 3, path
