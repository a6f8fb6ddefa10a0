"""The `mm-spine` command: its subcommands, and how an error ends it."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from mm_spine.commands import (
    adapt,
    ask,
    benchmarks,
    compare,
    demo,
    doctor,
    evaluate,
    forecast,
    grade,
    label,
    methods,
    report,
    serve,
    terminal,
    vote,
)
from mm_spine.compat import version_of
from mm_spine.config import RunStopped

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
for command in (
    demo.demo,
    adapt.adapt,
    evaluate.evaluate,
    forecast.forecast,
    methods.methods,
    ask.ask,
    serve.serve,
    compare.compare,
    label.label,
    report.report,
    grade.grade,
    vote.vote,
    doctor.doctor,
):
    app.command()(command)
app.add_typer(benchmarks.app, name="benchmarks")


def print_version(asked: bool) -> None:
    """Print the version and stop, where it is asked for."""
    if asked:
        print(f"mm-spine {version_of('mm-spine') or '(not installed: run from a checkout)'}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="print the version, and stop", callback=print_version, is_eager=True)
    ] = False,
) -> None:
    """Adapt a vision-language model to an unlabelled test set, without labels."""


def main() -> None:
    """Run a command. An error that the user can repair ends it with one message and exit code 2, not a traceback."""
    terminal.start_logging()
    try:
        try:
            app()
        finally:
            # What is still buffered is written here: at the interpreter's exit, a full disk would be a traceback.
            sys.stdout.flush()
    # ConfigError, ModelError and BadQuestion are ValueErrors; a full disk or a file without permission is an OSError.
    except (RunStopped, ValueError, OSError) as error:
        terminal.print_error(error)
        sys.exit(2)


if __name__ == "__main__":
    main()
