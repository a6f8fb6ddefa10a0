"""What every command does with the terminal: log lines, and the message of an error."""

from __future__ import annotations

import copy
import errno
import io
import logging
import os
import sys

from mm_spine.compat import quiet_logs
from mm_spine.config.plugins import place_of
from mm_spine.words import visible, visible_line


class VisibleFormatter(logging.Formatter):
    """Escapes the control characters of a message, and the line breaks of the texts put into it.

    These texts are ids and file names of the user's data, which may hold anything.
    """

    def format(self, record: logging.LogRecord) -> str:
        if isinstance(record.args, tuple):
            shown = tuple(visible_line(value) if isinstance(value, str) else value for value in record.args)
            record = copy.copy(record)
            record.args = shown
        return visible(super().format(record))


def start_logging() -> None:
    """Log to the standard error, with the notices of other libraries left out."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(VisibleFormatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    quiet_logs()
    # It otherwise says at each start how many threads it takes.
    logging.getLogger("numexpr").setLevel(logging.WARNING)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A character that the terminal's encoding lacks is printed as an escape instead of ending the command.
        sys.stdout.reconfigure(errors="backslashreplace")


def print_error(error: Exception) -> None:
    """Print the message of an error that ends a command."""
    print(f"mm-spine: {visible(_said(error))}", file=sys.stderr)
    _drop_output()


def _said(error: Exception) -> str:
    """Return the message of an error, and where in a plugin it was raised.

    An error of a full disk that names no file came from printing.
    """
    if isinstance(error, OSError) and error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"a file or the output could not be written in full: {error.strerror}; free some space and start again"
    place = place_of(error)
    return f"{place}: {error}" if place else str(error)


def _drop_output() -> None:
    """Have nothing more written to a standard output that has failed."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
