"""The limit on reading a megabyte: far above what linear reading takes on a slow, busy processor.

A megabyte is read in at most one second of processor time on the machine where these tests were written. Reading that
grows with the square of the length takes hours, so a limit this wide still tells the two apart.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

LIMIT_S = 60.0


@contextmanager
def linear(what: object) -> Iterator[None]:
    """Fail, naming `what`, if the block takes more than `LIMIT_S` seconds of processor time."""
    start = time.process_time()
    yield
    worked = time.process_time() - start
    assert worked < LIMIT_S, (what, worked)
