"""The launchers: one for each benchmark, thin, run from any folder; what they print is what they would run."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from mm_spine import cli
from mm_spine.benchmarks import BENCHMARKS
from mm_spine.config.layers import parse_overrides
from mm_spine.runs.plan import load_config

ROOT = Path(__file__).resolve().parents[2]
LAUNCHERS = sorted(path.stem.removeprefix("adapt_") for path in (ROOT / "scripts").glob("adapt_*.sh"))
PUBLIC = sorted(name for name, benchmark in BENCHMARKS.items() if benchmark.source is not None)
EMBEDDED = set(BENCHMARKS) - set(PUBLIC)
SPINES_TEN = {"mathvision", "slake", "medxpertqa", "medqa", "pubmedqa", "aime25", "amc", "math500", "gpqa", "mmlu"}

OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
SETTINGS = {"MODEL", "SOURCE", "GPUS", "OUTPUT", "CUDA_VISIBLE_DEVICES", "PYTHONSAFEPATH", *OFFLINE}

REAL = f"""#!/bin/sh
exec {shlex.quote(sys.executable)} "$@"
"""
WRITES_DOWN = f"""#!/bin/sh
case "$1" in -c) exit 0 ;; --version) echo Python 3.11.0; exit 0 ;; esac
exec {shlex.quote(sys.executable)} -c '
import json, os, sys
names = {json.dumps(sorted(SETTINGS))}
print(json.dumps({{"arguments": sys.argv[1:], "folder": os.getcwd(), **{{n: os.environ.get(n) for n in names}}}}))
' "$@"
"""


class Ended(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def command(self) -> list[str]:
        """The last line of a dry run, as a shell reads it."""
        return shlex.split(self.out.splitlines()[-1])

    @property
    def ran(self) -> dict[str, Any]:
        """What the interpreter that writes down was asked to do."""
        return dict(json.loads(self.out.splitlines()[0]))


class Checkout:
    """A copy of the scripts whose environment counts as installed: `interpreter` stands in for its Python."""

    def __init__(self, root: Path, interpreter: str) -> None:
        self.root, self.folder = root, root.parent / "the user's folder"
        self.folder.mkdir()
        shutil.copytree(ROOT / "scripts", root / "scripts")
        for name in ("pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, root)
        self.python = root / ".venv" / "bin" / "python"
        self.python.parent.mkdir(parents=True)
        self.python.write_text(interpreter)
        self.python.chmod(0o755)
        stamp = 'source scripts/_setup.sh; echo "$(environment_key) base" >"$stamp"'
        subprocess.run(["bash", "-c", stamp], cwd=root, check=True)

    def run(self, name: str, *arguments: str, **environment: str) -> Ended:
        left_out = {
            "MODEL",
            "SOURCE",
            "GPUS",
            "OUTPUT",
            "HF_HUB_OFFLINE",
            "TRANSFORMERS_OFFLINE",
            "HF_DATASETS_OFFLINE",
        }
        base = {name: value for name, value in os.environ.items() if name not in left_out}
        script = [str(self.root / "scripts" / f"adapt_{name}.sh"), *arguments]
        done = subprocess.run(script, cwd=self.folder, env={**base, **environment}, capture_output=True, text=True)
        return Ended(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    return Checkout(tmp_path_factory.mktemp("real") / "a check out", REAL)


@pytest.fixture(scope="module")
def recorder(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    return Checkout(tmp_path_factory.mktemp("recorder") / "a check out", WRITES_DOWN)


Command = Callable[..., Ended]


@pytest.fixture
def mm_spine(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command with these arguments, in this process."""

    def run(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["mm-spine", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return Ended(int(ended.value.code or 0), *capsys.readouterr())

    return run


def configuration(dry: Ended) -> dict[str, Any]:
    """What a dry run printed of it, above what it says of the model."""
    return dict(yaml.safe_load(dry.out.partition("no estimate")[0]))


# One for each benchmark


def test_every_public_benchmark_has_a_launcher_and_a_configuration() -> None:
    configurations = sorted(
        path.stem for path in (ROOT / "configs").glob("*.yaml") if path.stem not in {*EMBEDDED, "own"}
    )
    assert LAUNCHERS == configurations == PUBLIC and {"digits", "capitals", "capital_of", "flags"} == EMBEDDED
    assert SPINES_TEN.issubset(LAUNCHERS)


@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_configuration_is_one_that_can_be_run(name: str) -> None:
    config = load_config(str(ROOT / "configs" / f"{name}.yaml"))
    assert config.benchmark == name
    assert (config.sampling.votes.max, config.sampling.temperature, config.sampling.max_new_tokens) == (8, 0.7, 2048)
    assert config.evaluation.top_p == 0.95
    assert (config.method.kl, config.method.kl_weight, config.optim.lr) == ("exact", 0.01, 1e-6)


@pytest.mark.parametrize("name", LAUNCHERS)
def test_another_method_keeps_its_own_options(name: str) -> None:
    config = load_config(str(ROOT / "configs" / f"{name}.yaml"), method="ttrl")
    assert (config.method.kl, config.method.kl_weight) == ("k3", 0.001)


@pytest.mark.parametrize("path", sorted((ROOT / "scripts").glob("*.sh")), ids=lambda path: path.name)
def test_bash_reads_it(path: Path) -> None:
    found = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, "")


# The dry run


@pytest.mark.parametrize("name", LAUNCHERS)
def test_the_dry_run_of_a_launcher(name: str, recorder: Checkout, mm_spine: Command) -> None:
    """Its process is replaced by the one of this test: nineteen would take minutes to import torch."""
    assert os.access(ROOT / "scripts" / f"adapt_{name}.sh", os.X_OK)
    ended = recorder.run(name, "--dry-run", "--method", "spine-v2", HF_HUB_OFFLINE="1")
    arguments = ["adapt", name, f"--output=runs/{name}", "--method", "spine-v2"]
    assert ended.code == 0, ended
    assert ended.ran["arguments"] == ["-m", "mm_spine.cli", *arguments, "--dry-run"]
    assert ended.command == ["env", "PYTHONSAFEPATH=1", str(recorder.python), "-m", "mm_spine.cli", *arguments]
    printed = mm_spine(*arguments, "--dry-run")
    assert configuration(printed) == load_config(name, method="spine-v2").model_dump(mode="json")
    assert list(recorder.folder.iterdir()) == []


@pytest.mark.slow
def test_a_dry_run_in_a_process_of_its_own(real: Checkout) -> None:
    given = ("--dry-run", "--method", "ttrl", "--seed", "3", "optim.steps=24")
    ended = real.run("slake", *given, MODEL="nobody/has-this", SOURCE="it's here: #1", HF_HUB_OFFLINE="1")
    assert ended.code == 0, ended
    printed = configuration(ended)
    assert (printed["model"]["path"], printed["source"]) == ("nobody/has-this", "it's here: #1")
    assert (printed["method"]["name"], printed["seed"], printed["optim"]["steps"]) == ("ttrl", 3, 24)
    assert "no estimate: nobody/has-this is not on this machine" in ended.out
    assert ended.command[:3] == ["env", "PYTHONSAFEPATH=1", str(real.python)]
    assert list(real.folder.iterdir()) == []


def test_what_the_dry_run_prints_is_what_runs(recorder: Checkout) -> None:
    settings = {"MODEL": "it's a model: 1", "SOURCE": "./my data", "GPUS": "0,2", "OUTPUT": "runs/a b"}
    given = ("--method", "ttrl", "optim.steps=24", "--seed=3")
    printed = recorder.run("slake", "--dry-run", *given, **settings).out.splitlines()[-1]
    environment = {"PATH": os.environ["PATH"]}
    done = subprocess.run(
        ["bash", "-c", printed], cwd=recorder.folder, env=environment, capture_output=True, text=True, check=True
    )
    ran = recorder.run("slake", *given, **settings).ran
    assert json.loads(done.stdout) == {**ran, **dict.fromkeys(("MODEL", "SOURCE", "GPUS", "OUTPUT"))}


# What runs


def test_a_run_stays_in_the_users_folder(recorder: Checkout) -> None:
    ran = recorder.run("medqa", "limit=3").ran
    assert ran["arguments"] == ["-m", "mm_spine.cli", "adapt", "medqa", "--output=runs/medqa", "limit=3"]
    assert ran["folder"] == str(recorder.folder)
    assert ran["PYTHONSAFEPATH"] == "1"


def test_an_output_of_the_command_line_wins(recorder: Checkout) -> None:
    for given in (["--output", "x"], ["--output=x"]):
        assert recorder.run("amc", *given, OUTPUT="y").ran["arguments"] == [
            "-m",
            "mm_spine.cli",
            "adapt",
            "amc",
            *given,
        ]


def test_an_override_of_the_command_line_comes_after_model(recorder: Checkout) -> None:
    arguments = recorder.run("amc", "model.path=other", MODEL="Qwen/one").ran["arguments"]
    assert arguments[-2:] == ["model.path=Qwen/one", "model.path=other"]


WORDS = [
    "a b",
    "it's",
    "x: y #z",
    "7",
    "null",
    "~",
    "2001-01-01",
    "a/b@main",
    "@a/b",
    "[1]",
    "-a/b",
    "d'é/ö",
    "$HOME/x",
]


@pytest.mark.parametrize("word", WORDS)
def test_any_folder_reaches_the_configuration_as_it_is(word: str, recorder: Checkout) -> None:
    arguments = recorder.run("amc", MODEL=word, SOURCE=word).ran["arguments"]
    assert parse_overrides(arguments[-2:]) == {"model": {"path": word}, "source": word}


LAUNCH = "-m torch.distributed.run --standalone --nproc_per_node"


@pytest.mark.parametrize(
    ("gpus", "launch", "visible"),
    [("1", "", None), ("4", f"{LAUNCH} 4 ", None), ("0,2", f"{LAUNCH} 2 ", "0,2"), ("0", "", ""), ("", "", None)],
)
def test_gpus_says_how_many_or_which(gpus: str, launch: str, visible: str | None, recorder: Checkout) -> None:
    ran = recorder.run("amc", GPUS=gpus).ran
    assert ran["arguments"] == f"{launch}-m mm_spine.cli adapt amc --output=runs/amc".split()
    assert ran["CUDA_VISIBLE_DEVICES"] == visible


def test_the_hub_is_open_unless_the_user_closed_it(recorder: Checkout) -> None:
    free, closed = recorder.run("amc").ran, recorder.run("amc", HF_HUB_OFFLINE="1").ran
    assert [free[name] for name in OFFLINE] == [None, None, None]
    assert [closed[name] for name in OFFLINE] == ["1", None, None]


# What is refused


@pytest.mark.parametrize("gpus", ["two", "-1", "0,", "1.5", "0, 1"])
def test_other_gpus_are_refused(gpus: str, recorder: Checkout) -> None:
    ended = recorder.run("amc", GPUS=gpus)
    assert (ended.code, ended.out) == (2, "")
    assert f"mm-spine: GPUS={gpus}: give a number" in ended.err


@pytest.mark.slow
def test_what_mm_spine_refuses_ends_with_its_message_and_code(real: Checkout) -> None:
    ended = real.run("medqa", "--dry-run", "--nonsense")
    assert ended.code == 2
    assert "No such option" in ended.err
    assert "The command" not in ended.out


def test_help_names_every_setting_and_needs_no_environment(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    for given in (["--help"], ["optim.steps=3", "-h"]):
        script = [str(tmp_path / "scripts" / "adapt_gpqa.sh"), *given]
        done = subprocess.run(script, capture_output=True, text=True, check=True)
        for name in ("MODEL", "SOURCE", "GPUS", "OUTPUT", "--dry-run", "--method", "configs/gpqa.yaml", "runs/gpqa"):
            assert name in done.stdout
    assert not (tmp_path / ".venv").exists()
