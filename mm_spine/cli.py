"""The `mm-spine` command: its subcommands, and how an error ends it."""

from __future__ import annotations

import copy
import errno
import io
import logging
import os
import sys

import typer

from mm_spine.commands import adapt, ask, benchmarks, compare, doctor, evaluate, grade, methods, report, serve, vote
from mm_spine.compat import quiet_logs
from mm_spine.config import RunStopped
from mm_spine.words import visible, visible_line

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


class VisibleFormatter(logging.Formatter):
    """Escapes the control characters of a message, and the line breaks of the texts put into it.

    These texts are ids and file names of the user's data, which may hold anything.
    """

    def format(self, record: logging.LogRecord) -> str:
        if isinstance(record.args, tuple):
            record = copy.copy(record)
            record.args = tuple(visible_line(value) if isinstance(value, str) else value for value in record.args)
        return visible(super().format(record))


def main() -> None:
    """Run a command. An error that the user can repair ends it with one message and exit code 2, not a traceback."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(VisibleFormatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    quiet_logs()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A character that the terminal's encoding lacks is printed as an escape instead of ending the command.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            app()
        finally:
            # What is still buffered is written here: at the interpreter's exit, a full disk would be a traceback.
            sys.stdout.flush()
    # ConfigError, ModelError and BadQuestion are ValueErrors; a full disk or a file without permission is an OSError.
    except (RunStopped, ValueError, OSError) as error:
        print(f"mm-spine: {visible(_said(error))}", file=sys.stderr)
        _drop_output()
        sys.exit(2)


def _said(error: Exception) -> str:
    """Return the message of an error; one of a full disk that names no file came from printing."""
    if isinstance(error, OSError) and error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"a file or the output could not be written in full: {error.strerror}; free some space and start again"
    return str(error)


def _drop_output() -> None:
    """Have nothing more written to a standard output that has failed."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
