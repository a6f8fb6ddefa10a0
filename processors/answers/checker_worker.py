"""Compare formulas by math-verify: the program that `checker` starts, never imported by the package.

    python -P checker_worker.py MEMORY_BYTES

The process imports math-verify once and forks the worker that compares. When the worker is killed or dies, it forks
another, which takes milliseconds; a new import would take seconds. The caller keeps the time.

Messages are lines of JSON. In: `{"gold", "answer", "both"}`. Out: `{"equal"}` or `{"error"}`; before that `{"reading"}`
with each text that is new to the worker, null once it has been read; `{"pid"}` when a worker begins.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import select
import signal
import sys
from functools import lru_cache
from typing import Any
from zlib import crc32

from latex2sympy2_extended import NormalizationConfig, latex2sympy
from math_verify import verify
from math_verify.grader import should_treat_as_complex
from sympy import Expr, Rational

# Units are the caller's: math-verify's list takes "ab" off "2ab" and "m" off "3m".
_READING = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none")
_WARM_UP = (r"\frac{\sqrt{3}}{2}-2\pi^{2}", r"-3x^2+\frac{x}{2}", r"y=2(x+1)", r"\frac{\pi}{6}\cdot\sqrt[3]{2}")


@lru_cache(maxsize=4096)
def parsed(text: str) -> Any:
    """Return the expression that LaTeX stands for, None if it cannot be read."""
    try:
        return latex2sympy(
            text, is_real=not should_treat_as_complex(text), convert_degrees=False, normalization_config=_READING
        )
    except (MemoryError, RecursionError):
        raise
    except Exception:
        return None


@lru_cache(maxsize=4096)
def value(text: str) -> complex | None:
    """Evaluate an expression, its symbols at fixed positive values; None if that gives no number."""
    expression = parsed(text)
    if not isinstance(expression, Expr):
        return None
    # A value of its own for each symbol, the same in every process.
    points = {s: Rational(500 + crc32(str(s).encode()) % 1009, 613) for s in expression.free_symbols}
    try:
        return complex((expression.subs(points) if points else expression).evalf(15))
    except (MemoryError, RecursionError):
        raise
    except Exception:
        return None


def clearly_different(a: str, b: str) -> bool:
    """Return whether two values differ by more than the six decimals to which math-verify rounds floats."""
    x, y = value(a), value(b)
    return x is not None and y is not None and abs(x - y) > max(2e-6, 1e-9 * max(abs(x), abs(y)))


def equal(gold: str, answer: str, both: bool) -> bool:
    """Return math-verify's verdict on (gold, answer), with `both` also on (answer, gold)."""
    # Comparing values first spares the slow simplification of most pairs that differ.
    x, y = parsed(gold), parsed(answer)
    if x is None or y is None or clearly_different(gold, answer):
        return False
    return _verify(x, y) or (both and _verify(y, x))


def _verify(gold: Any, answer: Any) -> bool:
    try:
        return verify(gold, answer, timeout_seconds=None, raise_on_error=True)
    except (MemoryError, RecursionError):
        raise
    except Exception:
        return False


def serve(out: int, memory: int) -> int:
    """Compare until the input ends (returns 0), or memory or stack is exhausted (returns 1)."""
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _send(out, {"pid": os.getpid()})
    known: set[str] = set()
    with os.fdopen(os.dup(0), "rb") as lines:
        for line in lines:
            try:
                request = json.loads(line)
                for text in {request["gold"], request["answer"]} - known:
                    _send(out, {"reading": text})
                    value(text)
                    known.add(text)
                    _send(out, {"reading": None})
                _send(out, {"equal": equal(**request)})
            except MemoryError:
                _send(out, {"error": "it ran out of memory"})
                return 1
            except RecursionError:
                _send(out, {"error": "the expression is nested too deeply"})
                return 1
    return 0


def _send(out: int, message: dict[str, Any]) -> None:
    os.write(out, json.dumps(message).encode() + b"\n")


def main() -> int:
    """Keep a worker running until its input ends or the caller is gone."""
    # An interrupt reaches all processes of a terminal; the caller handles it and closes the pipes.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.disable(logging.CRITICAL)
    caller, out = os.getppid(), os.dup(1)
    # What a library prints must not reach the pipe.
    os.dup2(2, 1)
    for text in _WARM_UP:
        value(text)
    memory = int(sys.argv[1]) + _address_space()
    while True:
        ended, held = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(ended)
            os._exit(serve(out, memory))
        os.close(held)
        # The pipe closes when the worker ends. A worker in the middle of a comparison does not see the caller die.
        while not select.select([ended], [], [], 1.0)[0]:
            if os.getppid() != caller:
                os.kill(pid, signal.SIGKILL)
        os.close(ended)
        if os.waitpid(pid, 0)[1] == 0 or os.getppid() != caller:
            return 0


def _address_space() -> int:
    """Return the bytes of address space in use."""
    with open("/proc/self/statm") as pages:
        return int(pages.read().split()[0]) * resource.getpagesize()


if __name__ == "__main__":
    sys.exit(main())
