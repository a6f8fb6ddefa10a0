"""What importing the package costs and gives: nothing heavy until it is used, and the same names in any order."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import mm_spine

HEAVY = ("torch", "transformers", "torchvision", "numpy", "datasets")
COMMANDS = (
    "adapt",
    "evaluate",
    "methods",
    "ask",
    "serve",
    "compare",
    "report",
    "grade",
    "vote",
    "doctor",
    "demo",
    "benchmarks",
)

# Runs each command in one process and prints which heavy packages were imported.
RUN = f"""
import sys
from mm_spine import cli
for arguments in {{}}:
    sys.argv = ["mm-spine", *arguments]
    try:
        cli.main()
    except SystemExit as ended:
        assert not ended.code, arguments
print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
"""


def python(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process that has imported nothing."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)


def test_help_and_methods_import_nothing_heavy() -> None:
    calls = [["--help"], *([command, "--help"] for command in COMMANDS), ["benchmarks", "show", "--help"], ["methods"]]
    calls.append(["methods", "spine"])
    done = python(RUN.format(calls))
    assert done.returncode == 0 and done.stderr.splitlines()[-1] == "[]", done.stderr
    assert all(command in done.stdout for command in COMMANDS) and "random-mask" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "before",
    ["", "import mm_spine.adapt", "import mm_spine.runs.run"],
    ids=lambda code: code or "nothing",
)
def test_adapt_is_the_function_whatever_was_imported_before(before: str) -> None:
    code = f"""
{before}
import pickle
import mm_spine
from mm_spine import AnswerSpec, Policy, Question, adapt, configure
import mm_spine.adapt
assert mm_spine.adapt is adapt and adapt.__module__ == "mm_spine.runs.python"
assert pickle.loads(pickle.dumps(adapt)) is adapt
assert pickle.loads(pickle.dumps(AnswerSpec("text"))) == AnswerSpec("text")
"""
    done = python(code)
    assert done.returncode == 0, done.stderr


def test_the_public_names_are_listed_and_others_are_refused() -> None:
    names = {"AnswerSpec", "Hooks", "Method", "Policy", "Question", "adapt", "configure", "evaluate"}
    names |= {"register_benchmark", "register_kind", "register_method"}
    assert names == set(mm_spine.__all__) <= set(dir(mm_spine))
    with pytest.raises(AttributeError, match="no attribute 'adopt'"):
        _ = mm_spine.adopt
    with pytest.raises(TypeError, match="is the function"):
        mm_spine.adapt = 1  # type: ignore[assignment]


@pytest.mark.slow
def test_torchvision_is_imported_before_transformers_can_import_it() -> None:
    code = """
import sys
from importlib.abc import MetaPathFinder
order = []
class Recorder(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        order.append(name)
sys.meta_path.insert(0, Recorder())
from mm_spine import Policy
print(order.index("torchvision") < order.index("transformers"))
"""
    done = python(code)
    assert done.stdout.split() == ["True"], done.stderr
