"""`--plugin FILE.py` as a user meets it: the example of the documentation, what is refused, and runs that had one."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from command_line import Command, refused
from rich.console import Console

from mm_spine import cli
from mm_spine.commands import printing

Restore = Callable[[], None]

SMALL = (
    *("limit=16", "threads=1", "optim.steps=2", "optim.questions_per_step=4", "sampling.votes=4"),
    *("sampling.train_rollouts=4", "evaluation.samples=2", "evaluation.limit=4", "checkpoint.every=1"),
)
SHARED = ("adapt", "digits", "--method", "shared", *SMALL, "method.power=2")


@pytest.fixture
def example(repository: Path) -> Path:
    return repository / "docs" / "examples" / "plugin.py"


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(printing, "console", Console(width=300))


def steps_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "steps.jsonl").read_text().splitlines()]


def test_every_command_that_looks_something_up_takes_plugins() -> None:
    group: Any = typer.main.get_command(cli.app)
    takes = {name for name, command in group.commands.items() if any(p.name == "plugin" for p in command.params)}
    assert takes == {
        *("adapt", "evaluate", "forecast", "ask", "serve", "grade", "vote", "label", "methods", "benchmarks"),
    }  # fmt: skip
    assert any(p.name == "plugin" for p in group.commands["benchmarks"].commands["show"].params)


def test_the_example_is_as_short_as_the_page_says(example: Path, repository: Path) -> None:
    lines = len(example.read_text().splitlines())
    assert lines < 60 and f"in {lines} lines" in (repository / "docs" / "plugins.md").read_text()


@pytest.mark.slow
def test_the_example_trains_and_its_run_can_be_read_without_it(
    command: Command, example: Path, tables: Restore, tmp_path: Path, wide: None
) -> None:
    run = tmp_path / "run"
    ended = command(*SHARED, "--plugin", example, "--output", run)
    assert ended.code == 0, ended.err
    assert "method shared ran with method.power=2.0 (the method's own: 1.0)" in ended.out
    assert [step["step"] for step in steps_of(run)] == [0, 1] and all(step["loss"] for step in steps_of(run))
    assert yaml.safe_load((run / "config.yaml").read_text())["method"]["power"] == 2.0
    assert "power: 2.0" in (run / "adapted" / "README.md").read_text()
    digest = {"plugin.py": hashlib.sha256(example.read_bytes()).hexdigest()}
    for name in ("environment.json", "fingerprint.json"):
        assert json.loads((run / name).read_text())["plugins"] == digest

    # Without the plugin, as in a new process.
    tables()
    for arguments in (("report", run), ("compare", run)):
        ended = command(*arguments)
        assert ended.code == 0, ended.err
    refused(command(*SHARED, "--output", run, "--resume"), "method='shared': no such method", "--plugin FILE")
    settings = ("adapt", run / "config.yaml", "--output", tmp_path / "other")
    refused(command(*settings), "method='shared': no such method", "if a plugin adds it, give --plugin FILE")

    # A run that goes on needs the plugin that it began with.
    (run / "summary.json").unlink()
    changed, second = tmp_path / "plugin.py", tmp_path / "second.py"
    shutil.copy(example, changed)
    second.write_text("")
    with changed.open("a") as file:
        file.write("# another text\n")
    resume = (*SHARED, "--output", run, "--resume", "--plugin")
    refused(command(*resume, changed), "the plugin plugin.py changed since the run started; restore it")
    tables()
    refused(command(*resume, example, "--plugin", second), "the plugin second.py was added since the run started")
    tables()
    ended = command(*resume, example)
    assert ended.code == 0 and (run / "summary.json").is_file(), ended.err


@pytest.mark.slow
def test_on_two_processes_each_one_loads_the_plugin(example: Path, tmp_path: Path, repository: Path) -> None:
    launcher = {1: [], 2: ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]}
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    for processes, words in launcher.items():
        mine = [
            *words,
            "-m",
            "mm_spine.cli",
            *SHARED,
            "--plugin",
            str(example),
            "--output",
            str(tmp_path / f"{processes}"),
        ]
        done = subprocess.run([sys.executable, *mine], env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
    alone, together = (steps_of(tmp_path / name)[0] for name in ("1", "2"))
    for name in ("loss", "loss_policy", "grad_norm", "majority_share"):
        assert together[name] == pytest.approx(alone[name], rel=1e-4), name


def test_what_a_plugin_adds_is_listed_and_used(
    command: Command, example: Path, tables: Restore, tmp_path: Path, wide: None
) -> None:
    out = command("methods", "--plugin", example).out
    assert "vote shares, tokens weighed by entropy" in out and "reward, token weights" in out
    out = command("methods", "shared", "--plugin", example).out
    assert "A_it = A_i (H_t / mean H)^power" in out and "power=1.0  power of a token's entropy in its weight" in out
    assert "parity" in command("benchmarks", "--plugin", example).out
    assert "answer: kind=parity" in command("benchmarks", "show", "parity", "--plugin", example).out
    dry = command("adapt", "parity", "--method", "shared", "--plugin", example, "--dry-run").out
    assert "  name: shared" in dry and "  power: 1.0" in dry and "benchmark: parity" in dry

    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"id": 1, "response": "It is 14.", "answer": "even", "responses": ["3", "It is 5", "4"]}\n')
    assert "accuracy (mean score)" in command("grade", rows, "--kind", "parity", "--plugin", example).out
    assert "maj@3" in command("vote", rows, "--kind", "parity", "--plugin", example).out
    tables()
    refused(command("grade", rows, "--kind", "parity"), "unknown answer kind 'parity'", "give --plugin FILE")
    refused(command("benchmarks", "show", "parity"), "'parity' is neither a benchmark", "give --plugin FILE")


def test_an_error_in_a_plugin_ends_the_command_before_anything_loads(
    command: Command, nothing_loads: None, tables: Restore, tmp_path: Path
) -> None:
    plugin = tmp_path / "my.py"
    plugin.write_text("import mm_spine\n\nmm_spine.register_nothing('x')\n")
    output = tmp_path / "run"
    ended = command("adapt", "digits", "--plugin", plugin, "--output", output)
    refused(ended, f"{plugin}, line 3: AttributeError: module 'mm_spine' has no attribute 'register_nothing'")
    assert len(ended.err.splitlines()) == 1 and not output.exists()


def test_an_error_of_a_plugin_at_work_is_placed_in_its_file(command: Command, tables: Restore, tmp_path: Path) -> None:
    plugin = tmp_path / "my.py"
    plugin.write_text(
        "from dataclasses import replace\nfrom mm_spine import register_benchmark\n"
        "from mm_spine.benchmarks.digits import DigitsBenchmark\n\nclass Broken(DigitsBenchmark):\n"
        "    def load(self, split, source=None, prompt='reason'):\n        raise ValueError('no rows today')\n\n"
        "register_benchmark(Broken(name='broken', summary='x', adapt_split='adapt'))\n"
    )
    ended = command("benchmarks", "show", "broken", "--plugin", plugin)
    refused(ended, f"mm-spine: {plugin}, line 7: no rows today")


def test_an_option_of_a_plugins_method_is_refused_for_others(
    command: Command, nothing_loads: None, example: Path, tables: Restore
) -> None:
    ended = command("adapt", "digits", "method.power=2", "--plugin", example, "--dry-run")
    refused(ended, "method.power: not an option of this method; these have it: shared")
    ended = command("adapt", "digits", "--method", "shared", "method.pwer=2", "--plugin", example, "--dry-run")
    refused(ended, "method.pwer: no such key; did you mean 'power'?")
    assert re.search("valid: .*power, share", ended.err)
