"""`mm-spine adapt`."""

from __future__ import annotations

import json
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from mm_spine.commands import printing
from mm_spine.commands.options import Overrides, Plugins, Seed
from mm_spine.config import ConfigError, RunConfig

EXIT_CODES = {"SIGINT": 128 + signal.SIGINT, "SIGTERM": 128 + signal.SIGTERM}
"""Exit code of a run that a signal stopped, as shells count it."""


def adapt(
    target: Annotated[
        str, typer.Argument(metavar="BENCHMARK|CONFIG.yaml", help="A benchmark, a folder of your own, or a YAML file.")
    ],
    overrides: Overrides = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the run; must not hold a run yet.")] = None,
    method: Annotated[str | None, typer.Option(help="A method; `mm-spine methods` lists them.")] = None,
    seed: Seed = None,
    resume: Annotated[bool, typer.Option(help="Continue from the last checkpoint in --output.")] = False,
    dry_run: Annotated[
        bool, typer.Option(help="Print the configuration and what the run would take; load no model.")
    ] = False,
    card: Annotated[
        str | None,
        typer.Option(help="With --dry-run: memory and time on this card (h100-80, ...)."),
    ] = None,
    allow_labels: Annotated[bool, typer.Option(help="Let the control `oracle` read the labels.")] = False,
    plugin: Plugins = None,
) -> None:
    """Adapt a model to unlabelled questions; evaluate before and after."""
    from mm_spine import distributed
    from mm_spine.runs.listeners.live import watching
    from mm_spine.runs.plan import ModelNotSet, check, load_config
    from mm_spine.runs.run import run

    config = load_config(target, overrides or (), method, seed)
    try:
        plan = check(config, allow_labels, whole_model=card is None)
    except ModelNotSet as error:
        raise ConfigError("\n".join([str(error), *advice_on_model(target, overrides or ())])) from error
    if dry_run:
        print_plan(config, plan.model, card)
        printing.print_own_values(config, target, overrides or ())
        return
    if card is not None:
        raise ConfigError(f"--card={card} is for --dry-run: add it, or leave --card out")
    if output is None:
        raise ConfigError("--output is not set: name a folder for this run")
    printing.print_own_values(config, target, overrides or ())
    try:
        with watching() as listener:
            summary = run(config, output, resume=resume, allow_labels=allow_labels, listener=listener)
    except KeyboardInterrupt:
        # Outside of the steps nothing waits for a signal; a run that has begun goes on from its last checkpoint.
        started = (output / "config.yaml").is_file() and config.scope == "dataset"
        command = resume_command(sys.argv[1:]) if started else shlex.join(["mm-spine", *sys.argv[1:]])
        printing.print_line(f"stopped by SIGINT; {'go on with' if started else 'start again with'}: {command}")
        raise typer.Exit(EXIT_CODES["SIGINT"]) from None
    printing.console.quiet = distributed.rank() > 0
    if summary is None:
        stopped_by = json.loads((output / "stopped.json").read_text())["stopped_by"]
        # With scope=question the adapted weights are gone with each question, so no checkpoint can continue.
        advice = "start again in a new folder"
        if config.scope == "dataset":
            advice = f"go on with: {resume_command(sys.argv[1:])}"
        printing.print_line(f"stopped by {stopped_by}; {advice}")
        raise typer.Exit(EXIT_CODES[stopped_by])
    print_summary(output, summary)


def print_summary(output: Path, summary: Mapping[str, Any]) -> None:
    """Print the results of the finished run in `output`, and what it lost or changed."""
    printing.print_runs([output])
    printing.print_result(output)
    if (expected := summary.get("forecast")) is not None:
        printing.print_line(f"Before the first step. {expected['sentences'][-1]}")
    if (settled := summary.get("settled")) is not None:
        printing.print_line(settled["sentence"])
    for change in summary.get("method_changes", ()):
        printing.print_line(f"method {summary['method']} ran with {change}")
    printing.print_losses(summary["skipped"].values(), summary["bad_rows"])
    printing.print_written(output)


def advice_on_model(target: str, overrides: Sequence[str]) -> list[str]:
    """Return lines on which model to take for which card."""
    from mm_spine.commands.model_choice import card_here, choice_lines

    return list(choice_lines(target, overrides, card_here()))


def resume_command(arguments: Sequence[str]) -> str:
    """Return the command of these arguments with --resume, quoted so that it can be pasted into a shell."""
    resumed = [] if "--resume" in arguments else ["--resume"]
    return shlex.join(["mm-spine", *arguments, *resumed])


def print_plan(config: RunConfig, model: str, card: str | None = None) -> None:
    """Print the resolved configuration as YAML and, if the model is on this machine, what the run would take.

    With a `card`, whether the run fits on it, for which the model's config.json is enough. Raises ConfigError and
    ModelError.
    """
    from mm_spine.commands.estimate import estimate
    from mm_spine.policy.errors import ModelAbsent
    from mm_spine.policy.folder import locate_model, read_family, resolve_model

    if card is not None:
        from mm_spine.commands.card import find_card, print_card

        find_card(card)
        folder = locate_model(model, fetch=False)
        read_family(folder)
    resolved = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    # A wrapped line would not be the same YAML.
    printing.console.print(resolved, end="", markup=False, soft_wrap=True)
    if card is not None:
        print_card(config, folder, card)
        return
    try:
        folder = resolve_model(model, fetch=False)
    except ModelAbsent:
        printing.print_line(f"no estimate: {model} is not on this machine yet; the run fetches it")
        return
    printing.print_mapping("By arithmetic", estimate(config, folder))
