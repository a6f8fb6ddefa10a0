"""Decide by math-verify whether two formulas are equal, in a separate process with limits of time and memory.

Comparing by computer algebra can hang, exhaust the memory or crash. Here that costs only the pair, which then counts
as different and is kept in `failures()`; the process is replaced, and the next pair is compared. Any thread may ask;
they take turns. A forked process starts a worker of its own.

Floats agree if they do to six decimals, as math-verify rounds, and to 1e-5 of the larger one: 0.333333 is 1/3, 3.14 is
not pi, and 1/19! is not 1/20!. The limit is of the worker's processor time: a verdict does not depend on load.
H. Kydlíček et al., github.com/huggingface/Math-Verify.
"""

# Why not multiprocessing's forkserver: tried in Python 3.11, it saves 52 lines of 436, starts as fast and compares more
# pairs per second (340 against 260, on a noisy machine), but
# - a child imports the caller's main module again, which fails for a program on stdin and for a script without
#   `if __name__ == "__main__"`;
# - daemonic processes, such as data loader workers, may not start children;
# - after a fork the server of the parent does not serve the child;
# - a comparison in progress survives a caller that is killed.
# math-verify's own limit is signal.alarm, which works in the main thread only.

from __future__ import annotations

import atexit
import json
import logging
import math
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

log = logging.getLogger(__name__)

LIMIT_S = 1.5  # processor time of the comparisons of one item, so that a busy machine changes no verdict
_LEAST_S = 0.25  # seconds for a comparison if earlier ones have used up the item's limit
MEMORY_BYTES = 1536 * 1024**2  # in addition to what the imports take
WALL_S = 120.0  # wall time of one comparison: for a worker that neither computes nor answers
DEEPEST = 60  # brackets in brackets
LONGEST = 2000  # characters; anything longer is compared only as text
_START_S = 120.0  # for the import of math-verify on a busy machine, once
_RENEW_S = 60.0  # for the fork of a new worker
_KEPT = 10_000  # failures
_COMMAND = (sys.executable, "-P", str(Path(__file__).with_name("checker_worker.py")))

# Numbers that would fill pages: a power of a power, an exponent, a factorial.
_TOWER = re.compile(r"(?=\^\{?(\d+)\^\{?(\d+))")
_EXPONENT = re.compile(r"\^\{?-?(\d+)")
_FACTORIAL = re.compile(r"(\d+)\}?\)?!|(!)\s*\)?\s*!")


class Failure(NamedTuple):
    """A pair that the checker gave up on, and that counted as different."""

    a: str
    b: str
    reason: str


@dataclass
class _Item:
    """The failures and the processor seconds of the comparisons of one answer so far."""

    reasons: list[str]
    spent: float


_here = threading.local()
_failures: dict[tuple[str, str], Failure] = {}
_unreadable: dict[str, str] = {}


def equal(a: str, b: str) -> bool:
    """Return whether math-verify finds the two equal in either direction: the same for (a, b) and (b, a)."""
    return a == b or _ask(min(a, b), max(a, b), both=True)


def accepts(gold: str, answer: str) -> bool:
    """Return math-verify's verdict on `answer` against `gold`: not symmetric, for the gold says what form is wanted."""
    return gold == answer or _ask(gold, answer, both=False)


def failures() -> tuple[Failure, ...]:
    """Return the pairs that the checker gave up on in this process, each once, in order."""
    return tuple(_failures.values())


@contextmanager
def one_item() -> Iterator[list[str]]:
    """Let all comparisons of this thread in the block share one limit, and end them with the first failure.

    Yields the list of reasons of the failures, including those remembered from an earlier item.
    """
    outer: _Item | None = getattr(_here, "item", None)
    _here.item = item = _Item([], 0.0)
    try:
        yield item.reasons
    finally:
        _here.item = outer
        if outer is not None:
            outer.reasons += item.reasons
            outer.spent += item.spent


def close() -> None:
    """End the worker; the next comparison starts another."""
    with _lock:
        _drop()


def _ask(gold: str, answer: str, both: bool) -> bool:
    """Compare unless this item or this pair has failed before; False on failure, which the item keeps."""
    item: _Item = getattr(_here, "item", None) or _Item([], 0.0)
    if item.reasons:
        return False
    reason = _refused(gold, answer)
    if reason is None:
        verdict, reason = _outcome(gold, answer, both)
        if reason is None:
            return verdict
    item.reasons.append(reason)
    return False


def _refused(gold: str, answer: str) -> str | None:
    """Return why the pair is not compared again: it failed before, or one of the two did while it was read."""
    known = _failures.get((gold, answer)) or _failures.get((answer, gold))
    return known.reason if known else _unreadable.get(gold) or _unreadable.get(answer)


@lru_cache(maxsize=1 << 14)
def _outcome(gold: str, answer: str, both: bool) -> tuple[bool, str | None]:
    """Return (equal, why the checker gave up). Failures are remembered as well: they would only happen again."""
    if max(len(gold), len(answer)) > LONGEST:
        return False, None
    reply: dict[str, Any]
    if huge(gold) or huge(answer):
        reply = {"error": "a number is too large to evaluate"}
    elif depth(gold) > DEEPEST or depth(answer) > DEEPEST:
        reply = {"error": "the expression is nested too deeply"}
    else:
        reply = _exchange({"gold": gold, "answer": answer, "both": both})
    if "error" not in reply:
        return bool(reply["equal"]), None
    _note(Failure(gold, answer, reply["error"]), reply.get("reading"))
    return False, reply["error"]


def _note(failure: Failure, unreadable: str | None) -> None:
    """Remember a failure, and the text that was being read when it happened."""
    if unreadable is not None:
        _unreadable[unreadable] = failure.reason
    if (failure.a, failure.b) not in _failures and len(_failures) < _KEPT:
        _failures[failure.a, failure.b] = failure
        log.warning("not compared, counted as different: %.200r and %.200r: the checker stopped: %s", *failure)


def huge(text: str) -> bool:
    """Return whether `text` has a power or a factorial too large to evaluate: 9^{9^9}, 2^{100000}, 10000!."""
    if any(int(exponent[:9]) > 9999 for exponent in _EXPONENT.findall(text)):
        return True
    if any(int(top[:9]) * math.log10(max(int(base[:9]), 1)) > 4 for base, top in _TOWER.findall(text)):
        return True
    return any(not number or int(number[:9]) > 3000 for number, _ in _FACTORIAL.findall(text))


def depth(text: str) -> int:
    """Return how deeply brackets are nested."""
    return max(accumulate(1 if mark in "([{" else -1 for mark in text if mark in "()[]{}"), default=0)


class _Worker:
    """A running checker_worker: its process, the pipes to it, and the id of its fork that compares."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.process = subprocess.Popen(
            (*_COMMAND, str(MEMORY_BYTES)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.to, self.back = self.process.stdin.fileno(), self.process.stdout.fileno()
        self.rest = b""
        self.fork = 0
        try:
            self._greet(_START_S)
        except _Gone:
            self.stop()
            raise

    def ask(self, request: dict[str, Any], limit: float) -> dict[str, Any]:
        """Return the reply to one comparison, or an `"error"`, and under `"reading"` the text being read at the end.

        `limit` is in seconds of the worker's processor time.
        """
        os.write(self.to, json.dumps({**request, "limit": limit}).encode() + b"\n")
        deadline = time.monotonic() + WALL_S
        reading: str | None = None
        while (reply := self._line(deadline - time.monotonic())) and "reading" in reply:
            reading = reply["reading"]
        if reply is None:
            with suppress(ProcessLookupError):
                os.kill(self.fork, signal.SIGKILL)
            reply = {"error": f"no verdict after {WALL_S:.2g} s of waiting"}
        # Its successor introduces itself: the fork died of this pair.
        elif "pid" in reply:
            self.fork = reply["pid"]
            late = reply.get("timed_out")
            error = f"no verdict after {limit:.2g} s of processor time" if late else "it crashed"
            return {"error": error, "reading": reading, "seconds": limit if late else 0.0}
        if "error" in reply:
            self._greet(_RENEW_S)
        return {**reply, "reading": reading}

    def stop(self) -> None:
        """Close the pipes, which ends the worker; kill its processes if they have not ended after 1 s."""
        process = self.process
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):
                pipe and pipe.close()
        if self.owner == os.getpid():
            try:
                process.wait(1.0)
            except subprocess.TimeoutExpired:
                with suppress(ProcessLookupError):
                    os.kill(self.fork or process.pid, signal.SIGKILL)
                process.kill()
                process.wait()

    def _greet(self, limit: float) -> None:
        """Wait for the fork to introduce itself."""
        # A reply of the fork that was killed may come first.
        while hello := self._line(limit):
            if "pid" in hello:
                self.fork = hello["pid"]
                return
        raise _Gone

    def _line(self, limit: float) -> dict[str, Any] | None:
        """Return the next message, None after `limit` seconds. _Gone: the process has ended."""
        deadline = time.monotonic() + limit
        poll = select.poll()
        poll.register(self.back, select.POLLIN)
        while b"\n" not in self.rest:
            left = deadline - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                return None
            chunk = os.read(self.back, 1 << 16)
            if not chunk:
                raise _Gone
            self.rest += chunk
        line, _, self.rest = self.rest.partition(b"\n")
        return json.loads(line)


class _Gone(Exception):
    """The worker process has ended or does not answer."""


_lock = threading.Lock()
_worker: _Worker | None = None


def _exchange(request: dict[str, Any]) -> dict[str, Any]:
    """Ask the worker, or a new one if it has ended. RuntimeError: no worker starts."""
    global _worker
    item: _Item = getattr(_here, "item", None) or _Item([], 0.0)
    with _lock:
        for _ in range(2):
            if _worker is None:
                _worker = _start()
            try:
                reply = _worker.ask(request, max(LIMIT_S - item.spent, _LEAST_S))
                item.spent += reply.get("seconds", 0.0)
                return reply
            except (_Gone, OSError):
                _drop()
    return {"error": "it crashed"}


def _start() -> _Worker:
    """Start a worker. RuntimeError: it does not start."""
    try:
        return _Worker()
    except (_Gone, OSError) as error:
        raise RuntimeError(
            f"the checker of mathematical answers does not start; `{' '.join(_COMMAND)} 1` prints why "
            "(is math-verify installed for this Python?)"
        ) from error


def _drop() -> None:
    """Stop the worker, if there is one."""
    global _worker
    worker, _worker = _worker, None
    if worker is not None:
        worker.stop()


def _after_fork() -> None:
    """Forget the worker in a forked process: it is the parent's, as is the thread that may hold the lock."""
    global _lock
    _lock = threading.Lock()
    _drop()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(close)
