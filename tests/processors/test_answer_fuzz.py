"""100,000 random and adversarial responses through parse, same and grade: no crash, none over 2 s, memory bounded."""

from __future__ import annotations

import random
import resource
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from linear import LIMIT_S

from mm_spine.processors.answers import grade, known_kinds, parse, same
from mm_spine.types import Answer, AnswerSpec

TOTAL = 100_000
MEMORY_GROWTH = 600 * 2**20  # bytes; ten of the strings are 1 MB, and patterns are compiled on the way
OPTIONS = ("aspirin", "aspirin and heparin", "$11^{\\circ}$", "2", "None of the above")

SPECS = {
    "box": (AnswerSpec("box"), "[1, 2, 30, 40]"),
    "choice": (AnswerSpec("choice", OPTIONS), "B"),
    "integer": (AnswerSpec("integer"), "7"),
    "math": (AnswerSpec("math"), "\\frac{3}{2}"),
    "math_or_choice": (AnswerSpec("math_or_choice", OPTIONS), "C"),
    "medical": (AnswerSpec("medical"), "left lung"),
    "named": (AnswerSpec("named", ("France|French Republic", "Côte d'Ivoire", "2")), "France"),
    "text": (AnswerSpec("text"), "left lung"),
    "typed": (AnswerSpec("typed", precision=2, value_type="float", unit="cm"), "3.14"),
    "vqa": (AnswerSpec("vqa"), "two"),
    "yes_no": (AnswerSpec("yes_no"), "yes"),
    "yes_no_maybe": (AnswerSpec("yes_no_maybe"), "maybe"),
}

PIECES = (
    *"ABCDEJ0123456789 .,;:!?()[]{}\\$%^_-+=*/<>@#'\"`~|&\n\t\r",
    *(
        "\\boxed{",
        "\\frac{",
        "\\sqrt{",
        "\\text{",
        "\\left(",
        "\\right)",
        "\\begin{pmatrix}",
        "\\infty",
        "\\cdot",
        "}",
        "{",
    ),
    *(
        "the answer is ",
        "Answer: ",
        "答案是",
        "so ",
        "not ",
        "yes",
        "no",
        "maybe",
        "是",
        "没有",
        "a",
        "an",
        "none",
        "x-ray",
    ),
    *(
        "\x00",
        "\x1b[31m",
        "\u200f",
        "\u202e",
        "\ufeff",
        "\ud800",
        "é",
        "e\u0301",
        "ａ",
        "Ｂ",
        "（",
        "）",
        "🫁",
        "٣",
        "½",
        "²",
        "−",
    ),
    *(
        "9^9^9^9",
        "10!",
        "1e400",
        "1/0",
        "0/0",
        "\\int_0^1 x\\,dx",
        "x=5",
        "[1,2]",
        "(1,2)",
        "50\\%",
        "<answer>",
        "</answer>",
    ),
)

MEGABYTE = 2**20
ADVERSARIAL: tuple[Callable[[], str], ...] = (
    lambda: "\\boxed{" * 100_000,
    lambda: "\\boxed{" * 50_000 + "7" + "}" * 50_000,
    lambda: "{" * (MEGABYTE // 2) + "}" * (MEGABYTE // 2),
    lambda: "a" * MEGABYTE,
    lambda: "7" * MEGABYTE,
    lambda: "the answer is " * 70_000,
    lambda: "(" * MEGABYTE,
    lambda: "A. " * 300_000,
    lambda: "not " * 250_000 + "B",
    lambda: "\u202e" * MEGABYTE,
    lambda: "\n" * MEGABYTE,
    lambda: "\\frac" * 200_000,
    lambda: "$" * MEGABYTE,
    lambda: "1," * 500_000,
    lambda: " \t" * 500_000 + "B",
    lambda: "\\boxed{9^9^9^9}",
    lambda: "\\boxed{" + "9^" * 500 + "9}",
    lambda: "\\boxed{((((((10!)!)!)!)!)!)}",
    lambda: "\\boxed{" + "\\sqrt{" * 300 + "2" + "}" * 300 + "}",
    lambda: "\\boxed{(x+1)^{100000}}",
    lambda: "\\boxed{\\sum_{k=1}^{10^{12}} \\frac{1}{k^{k}}}",
    lambda: "\\boxed{\\int_0^\\infty e^{-x^{x^x}} \\sin(x^x)\\,dx}",
    lambda: "\\boxed{10^{10^{10}}}",
    lambda: "\\boxed{" + "1+" * 5_000 + "1}",
    lambda: "",
)


def responses(kind: str, count: int) -> Iterator[str]:
    """The adversarial strings, then random ones: equal for equal arguments."""
    for make in ADVERSARIAL:
        yield make()
    rng = random.Random(f"fuzz {kind}")
    for _ in range(count - len(ADVERSARIAL)):
        yield "".join(rng.choices(PIECES, k=min(int(rng.expovariate(1 / 8)) + 1, 60)))


def test_every_kind_is_fuzzed() -> None:
    assert set(SPECS) == set(known_kinds())


class Clock:
    """Calls functions and remembers the slowest call, in CPU time of this process and by the clock on the wall."""

    def __init__(self) -> None:
        self.slowest: tuple[float, str] = (0.0, "")
        self.longest: tuple[float, str] = (0.0, "")

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        worked, waited = time.process_time(), time.perf_counter()
        result = function(*arguments)
        worked, waited = time.process_time() - worked, time.perf_counter() - waited
        if worked > self.slowest[0] or waited > self.longest[0]:
            call = f"{function.__name__}{tuple(str(a)[:80] for a in arguments)}"
            self.slowest = max(self.slowest, (worked, call))
            self.longest = max(self.longest, (waited, call))
        return result


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(SPECS))
def test_no_response_crashes_hangs_or_swells_a_kind(kind: str) -> None:
    spec, gold = SPECS[kind]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    last: Answer | None = None
    timed = Clock()
    for response in responses(kind, TOTAL // len(SPECS)):
        answer = timed(parse, response, spec)
        verdict = timed(grade, answer, gold, spec)
        if answer is not None:
            assert timed(same, answer, answer, spec), (response[:200], answer)
            if last is not None:
                assert timed(same, answer, last, spec) == timed(same, last, answer, spec), (answer, last)
            last = answer
        assert type(verdict.correct) is bool and 0.0 <= verdict.score <= 1.0
        assert answer is not None or not verdict.correct
    assert timed.slowest[0] < LIMIT_S, timed.slowest
    assert timed.longest[0] < LIMIT_S, timed.longest
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before < MEMORY_GROWTH
