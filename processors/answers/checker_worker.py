"""Compare formulas by math-verify: the program that `checker` starts, never imported by the package.

    python -P checker_worker.py MEMORY_BYTES

The process imports math-verify once and forks the worker that compares. When the worker is killed or dies, it forks
another, which takes milliseconds; a new import would take seconds. A comparison that takes more processor time than
its limit kills the worker, so that a verdict does not depend on what else the machine does.

Messages are lines of JSON. In: `{"gold", "answer", "both", "limit"}`, the limit in seconds of processor time. Out:
`{"equal", "seconds"}` or `{"error"}`; before that `{"reading"}` with each text that is new to the worker, null once it
has been read; `{"pid", "timed_out"}` when a worker begins, with whether its predecessor was killed by its limit.
"""

from __future__ import annotations

import json
import logging
import os
import re
import resource
import select
import signal
import sys
import time
from functools import lru_cache
from typing import Any
from zlib import crc32

from latex2sympy2_extended import NormalizationConfig, latex2sympy
from math_verify import grader, verify
from math_verify.grader import should_treat_as_complex
from sympy import Expr, Rational

# Units are the caller's: math-verify's list takes "ab" off "2ab" and "m" off "3m".
_READING = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none")
# latex2sympy reads 2(3) and (2)(3) as the mixed numbers 2+3, and 2(\frac{1}{2}) as 2+1/2: they are products.
_PRODUCT = re.compile(r"(?<=[0-9)}])\s*(?=(?:\\left\s*)?\([^(),;]*\))")
_EXACT_ZERO = 1e-90  # sympy evaluates an expression that is 0 to about 1e-120
_WARM_UP = (r"\frac{\sqrt{3}}{2}-2\pi^{2}", r"-3x^2+\frac{x}{2}", r"y=2(x+1)", r"\frac{\pi}{6}\cdot\sqrt[3]{2}")


@lru_cache(maxsize=4096)
def parsed(text: str) -> Any:
    """Return the expression that LaTeX stands for, None if it cannot be read."""
    text = _PRODUCT.sub(_times, text)
    try:
        return latex2sympy(
            text, is_real=not should_treat_as_complex(text), convert_degrees=False, normalization_config=_READING
        )
    except (MemoryError, RecursionError):
        raise
    except Exception:
        return None


def _times(gap: re.Match[str]) -> str:
    r"""Return the sign between two factors; nothing after an argument in braces, as in \frac{x}{2}(1), f_{1}(x)."""
    before = gap.string[: gap.start()]
    # Behind a letter's index or a function's power stands its argument, not a factor.
    argument = re.search(r"(?:[A-Za-z]\s*[\^_]\s*(?:\{[^{}]*\}|[0-9])|[A-Za-z]\s*\([^()]*\))\Z", before)
    return gap[0] if argument else r"\cdot "


@lru_cache(maxsize=4096)
def value(text: str) -> complex | None:
    """Evaluate an expression, its symbols at fixed positive values; None if that gives no number."""
    return _evaluated(parsed(text))


def _evaluated(expression: Any) -> complex | None:
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
    """Return whether two values differ by more than six decimals, to which math-verify rounds floats, or by 1e-5.

    The second is a share of the larger one: 1/19! and 1/20! agree to any number of decimals, and are not equal.
    """
    x, y = value(a), value(b)
    if x is None or y is None:
        return False
    return abs(x - y) > max(2e-6, 1e-9 * max(abs(x), abs(y))) or _far(x, y)


def _far(x: complex, y: complex) -> bool:
    """Return whether two values differ by more than 1e-5 of the larger one."""
    largest = max(abs(x), abs(y))
    return largest > _EXACT_ZERO and abs(x - y) > 1e-5 * largest


_numeric_eq = grader.sympy_numeric_eq
_whole: tuple[Any, Any] | None = None


def numeric_eq(a: Any, b: Any, float_rounding: int, numeric_precision: int) -> bool:
    """Compare as math-verify does, which takes whatever is small for 0, and by ratio: in matrices, sets, equations."""
    if not _numeric_eq(a, b, float_rounding, numeric_precision):
        return False
    # The values of the two as a whole are compared once, before.
    if _whole is not None and {id(a), id(b)} == {id(each) for each in _whole}:
        return True
    x, y = _evaluated(a), _evaluated(b)
    return x is None or y is None or not _far(x, y)


grader.sympy_numeric_eq = numeric_eq


def equal(gold: str, answer: str, both: bool) -> bool:
    """Return math-verify's verdict on (gold, answer), with `both` also on (answer, gold)."""
    # Comparing values first spares the slow simplification of most pairs that differ.
    global _whole
    x, y = parsed(gold), parsed(answer)
    _whole = (x, y) if value(gold) is not None and value(answer) is not None else None
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


def serve(out: int, memory: int, timed_out: bool) -> int:
    """Compare until the input ends (returns 0), or memory or stack is exhausted (returns 1)."""
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _send(out, {"pid": os.getpid(), "timed_out": timed_out})
    known: set[str] = set()
    with os.fdopen(os.dup(0), "rb") as lines:
        for line in lines:
            try:
                request = json.loads(line)
                started = time.process_time()
                # The signal's default action ends the process, also within a single operation on huge numbers.
                signal.setitimer(signal.ITIMER_PROF, request.pop("limit"))
                for text in {request["gold"], request["answer"]} - known:
                    _send(out, {"reading": text})
                    value(text)
                    known.add(text)
                    _send(out, {"reading": None})
                verdict = equal(**request)
                signal.setitimer(signal.ITIMER_PROF, 0.0)
                _send(out, {"equal": verdict, "seconds": time.process_time() - started})
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
    timed_out = False
    while True:
        ended, held = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(ended)
            os._exit(serve(out, memory, timed_out))
        os.close(held)
        # The pipe closes when the worker ends. A worker in the middle of a comparison does not see the caller die.
        while not select.select([ended], [], [], 1.0)[0]:
            if os.getppid() != caller:
                os.kill(pid, signal.SIGKILL)
        os.close(ended)
        status = os.waitpid(pid, 0)[1]
        if status == 0 or os.getppid() != caller:
            return 0
        timed_out = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF


def _address_space() -> int:
    """Return the bytes of address space in use."""
    with open("/proc/self/statm") as pages:
        return int(pages.read().split()[0]) * resource.getpagesize()


if __name__ == "__main__":
    sys.exit(main())
