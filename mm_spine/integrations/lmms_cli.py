"""Run lmms-eval's command line on one of our models, after writing our own tasks for it: scripts/eval_lmms.sh.

lmms-eval exits with 0 even when an evaluation fails. This command does not.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mm_spine.config import ConfigError
from mm_spine.integrations import manifest
from mm_spine.integrations.lmms_hook import check_installed
from mm_spine.integrations.lmms_tasks import write_tasks
from mm_spine.policy.errors import ModelError
from mm_spine.policy.folder import resolve_model

OURS = "mm_spine:"
"""Prefix of our benchmarks. lmms-eval has tasks of the same names, with other prompts and graders."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command. Exit with 2 and a sentence for what the user can mend, with 1 if the evaluation failed."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    at = given.index("--") if "--" in given else len(given)
    parsed = parser().parse_args(given[:at])
    try:
        check_installed("eval_lmms")
        _check(parsed)
        command = command_line(parsed, given[at + 1 :])
        print(shlex.join(["lmms-eval", *command]), file=sys.stderr)
        failures = _run(command)
    except (ValueError, OSError) as error:
        print(f"mm-spine: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(1 if failures else 0)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the arguments before `--`."""
    usage = "%(prog)s MODEL TASK... [--args A=B,...] [--output DIR] [--source PLACE] [-- LMMS-EVAL-OPTION...]"
    made = argparse.ArgumentParser(prog="scripts/eval_lmms.sh", description=__doc__, usage=usage)
    made.add_argument("model")
    made.add_argument("tasks", nargs="+")
    made.add_argument("--args", default="")
    made.add_argument("--output", type=Path, default=Path("runs/lmms_eval"))
    made.add_argument("--source")
    return made


def command_line(given: argparse.Namespace, more: Sequence[str]) -> list[str]:
    """Return the arguments of lmms-eval's command; write our own tasks into the folder `tasks` of the output first.

    Our own tasks are folders and names with the prefix `mm_spine:`.
    """
    ours = [task for task in given.tasks if task.startswith(OURS) or Path(task).is_dir()]
    names = [task for task in given.tasks if task not in ours]
    for task in ours:
        names += write_tasks(task.removeprefix(OURS), given.output / "tasks", source=given.source)
    command = ["--model", "mm_spine", "--model_args", _model_args(given), "--tasks", ",".join(names)]
    if ours:
        command += ["--include_path", str(given.output / "tasks")]
    return [*command, "--output_path", str(given.output), "--log_samples", *more]


def _model_args(given: argparse.Namespace) -> str:
    return ",".join(part for part in (f"pretrained={given.model}", given.args) if part)


def _check(given: argparse.Namespace) -> None:
    """Check the arguments and fetch the model before lmms-eval starts. Raises ConfigError or ModelError."""
    from lmms_eval.utils import simple_parse_args_string

    from mm_spine.integrations.lmms_eval import config_of, read_arguments

    if "," in given.model:
        raise ConfigError(f"model {given.model!r}: lmms-eval takes no comma in it; give a folder without one")
    try:
        model_args = simple_parse_args_string(_model_args(given))
    except ValueError as error:
        raise ConfigError(f"--args {given.args!r}: write it as votes=8,temperature=0.7") from error
    arguments = read_arguments(model_args)
    config_of(arguments)
    resolve_model(arguments.pretrained)


def _run(command: Sequence[str]) -> list[Exception]:
    """Run lmms-eval's command and return the errors it failed with. Raises those that are ConfigError or ModelError."""
    from lmms_eval import __main__ as harness
    from lmms_eval.models import MODEL_REGISTRY_V2

    # The entry point exists only where mm-spine is installed, so register the model here too.
    MODEL_REGISTRY_V2.register_manifest(manifest(), overwrite=True)
    failures: list[Exception] = []
    evaluate_single = harness.cli_evaluate_single

    # lmms-eval catches the errors of an evaluation, so note them where they are raised.
    def evaluate_and_note(arguments: Any) -> Any:
        try:
            return evaluate_single(arguments)
        except Exception as error:
            failures.append(error)
            raise

    harness.cli_evaluate_single = evaluate_and_note
    argv, sys.argv = sys.argv, ["lmms-eval", *command]
    try:
        harness.cli_evaluate()
    finally:
        sys.argv, harness.cli_evaluate_single = argv, evaluate_single
    for error in failures:
        if isinstance(error, ConfigError | ModelError):
            raise error
    return failures


if __name__ == "__main__":
    main()
