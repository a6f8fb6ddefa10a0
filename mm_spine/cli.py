"""The `mm-spine` command: its subcommands, and how an error ends it."""

from __future__ import annotations

import io
import logging
import sys

import typer

from mm_spine.commands import adapt, ask, benchmarks, compare, doctor, evaluate, grade, methods, report, serve, vote
from mm_spine.compat import quiet_logs
from mm_spine.config import RunStopped

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
for command in (
    adapt.adapt,
    evaluate.evaluate,
    methods.methods,
    ask.ask,
    serve.serve,
    compare.compare,
    report.report,
    grade.grade,
    vote.vote,
    doctor.doctor,
):
    app.command()(command)
app.add_typer(benchmarks.app, name="benchmarks")


def main() -> None:
    """Run a command. An error that the user can repair ends it with one message and exit code 2, not a traceback."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    quiet_logs()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A character that the terminal's encoding lacks is printed as an escape instead of ending the command.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app()
    # ConfigError, ModelError and BadQuestion are ValueErrors; a full disk or a file without permission is an OSError.
    except (RunStopped, ValueError, OSError) as error:
        print(f"mm-spine: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
