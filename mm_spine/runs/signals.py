"""SIGINT and SIGTERM during a run."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

log = logging.getLogger(__name__)

DEFAULT_HANDLERS: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


@contextmanager
def noted_signals() -> Iterator[list[str]]:
    """Yield the list of signals received in the block, by name, so that the step can end and be checkpointed.

    A second signal acts at once, by the handler from before the block.
    """
    received: list[str] = []
    previous = {number: signal.getsignal(number) for number in DEFAULT_HANDLERS}

    def note(number: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(number).name)
        # A shell that starts a job in the background has it ignore SIGINT. The second signal must still stop it.
        handler = DEFAULT_HANDLERS[number] if previous[number] is signal.SIG_IGN else previous[number]
        signal.signal(number, handler)
        log.warning("%s: finishing this step, then writing a checkpoint (again to stop at once)", received[-1])

    for number in previous:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
