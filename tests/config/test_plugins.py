"""A plugin is run once, under a name of its own; what is wrong in it is said with its file and line."""

from __future__ import annotations

import hashlib
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mm_spine.config import ConfigError
from mm_spine.config.plugins import digests, load, load_all, place_of

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, tables: None) -> Write:
    """Write a plugin's text to NAME, by default my.py."""

    def to_file(text: str, name: str = "my.py") -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    return to_file


def test_a_file_is_run_once_under_a_name_that_no_module_has(write: Write) -> None:
    # A plugin may be called like a module: json stays json.
    path = write("import json\nruns = globals().get('runs', 0) + 1\nLOADED = json.dumps([1])", "json.py")
    module = load(path)
    assert (module.runs, module.LOADED, module.__name__) == (1, "[1]", "mm_spine_plugin_json")
    assert load(path.parent / "." / "json.py") is module and module.runs == 1
    assert sys.modules["json"].__name__ == "json"
    assert digests() == {"json.py": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert not list(path.parent.glob("__pycache__")), "nothing is written beside the user's file"


def test_what_a_plugin_defines_can_be_pickled_and_is_typed_by_its_own_rules(write: Write) -> None:
    module = load(write("from dataclasses import dataclass\n@dataclass\nclass Row:\n    x: int = 3\n"))
    assert pickle.loads(pickle.dumps(module.Row(4))) == module.Row(4)
    # The loader's own `from __future__ import annotations` must not reach the file.
    assert module.Row.__annotations__ == {"x": int}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n\ny = x +\n", "line 3: SyntaxError: invalid syntax"),
        ("def f():\n    return 1 / 0\n\nf()\n", "line 2: ZeroDivisionError: division by zero"),
        ("import no_such_module\n", "line 1: ModuleNotFoundError: No module named 'no_such_module'"),
        ("\nint('x\\ny')\n", r"line 2: invalid literal for int() with base 10: 'x\ny'"),
        (
            "from mm_spine import Method, register_method\nregister_method('ttrl', Method('a', 'b'))\n",
            "line 2: method 'ttrl' exists already; choose another name",
        ),
        (
            "from mm_spine import register_kind\nfrom mm_spine.processors.answers import KINDS\n"
            "register_kind('text', KINDS['text'])\n",
            "line 3: answer kind 'text' exists already; choose another name",
        ),
        (
            "from mm_spine import register_benchmark\nfrom mm_spine.benchmarks import BENCHMARKS\n"
            "register_benchmark(BENCHMARKS['digits'])\n",
            "line 3: benchmark 'digits' exists already; choose another name",
        ),
        (
            "import mm_spine\nmm_spine.register_kind('mine', 3)\n",
            "line 2: TypeError: register_kind('mine', ...) takes a",
        ),
        ("import mm_spine\nmm_spine.register_benchmark(3)\n", "line 2: TypeError: register_benchmark(...) takes a"),
    ],
)
def test_an_error_in_a_plugin_is_one_sentence_with_its_line(text: str, message: str, write: Write) -> None:
    path = write(text)
    with pytest.raises(ConfigError, match=f"^{re.escape(f'{path}, {message}')}") as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert digests() == {} and "mm_spine_plugin_my" not in sys.modules, "a file that failed is not loaded"


def test_a_path_that_is_no_plugin_is_refused(write: Write, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--plugin .*absent\.py: cannot be read \(No such file or directory\)"):
        load(tmp_path / "absent.py")
    with pytest.raises(
        ConfigError, match=r"--plugin .*notes\.txt: not a Python file; give one whose name ends in \.py"
    ):
        load(write("", "notes.txt"))


def test_two_plugins_of_one_name_are_refused(write: Write) -> None:
    load_all([write("", "a/my.py"), write("", "a/other.py")])
    with pytest.raises(
        ConfigError, match=r"--plugin .*b/my\.py: another plugin has the name my\.py; rename one of them"
    ):
        load(write("", "b/my.py"))
    assert list(digests()) == ["my.py", "other.py"]


def test_an_error_while_a_plugin_works_is_placed_in_its_file(write: Write) -> None:
    path = write("def reward(x):\n    return inner(x)\n\ndef inner(x):\n    raise ValueError('no')\n")
    module = load(path)
    with pytest.raises(ValueError, match="no") as caught:
        module.reward(1)
    assert place_of(caught.value) == f"{path}, line 5"
    assert place_of(ValueError("elsewhere")) is None


def test_a_link_is_the_file_that_it_leads_to(write: Write, tmp_path: Path) -> None:
    path, link = write("def reward(x):\n    raise ValueError('no')\n"), tmp_path / "latest.py"
    link.symlink_to(path)
    module = load(link)
    with pytest.raises(ValueError, match="no") as caught:
        module.reward(1)
    assert place_of(caught.value) == f"{link}, line 2"
    assert load(path) is module and list(digests()) == ["my.py"]


@pytest.mark.slow
def test_spawned_processes_start_while_a_plugin_is_loaded(write: Write, repository: Path) -> None:
    """vLLM's workers are spawned: they import the main module again, and must not need the plugin."""
    path = write("from mm_spine import Method, register_method\nregister_method('mine', Method('a', 'b'))\n")
    code = f"""
import multiprocessing, sys
from mm_spine.config.plugins import load
from mm_spine.methods.table import find

if __name__ == "__main__":
    load({str(path)!r})
    assert find("mine")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.apply(len, ("four",)))
"""
    script = path.parent / "main.py"
    script.write_text(code)
    environment = {"PYTHONPATH": str(repository), "PATH": ""}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout == "4\n", done.stderr
