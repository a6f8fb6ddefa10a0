r"""How long votes take: 64 responses to each of 1,000 questions, parsed and counted, for letters and for mathematics.

    python scripts/bench/voting.py [--questions 1000] [--votes 64]

Responses are about 600 characters of reasoning that end in a box. Letters: four options. Mathematics: six different
answers to a question in uneven shares; to every third question they are formulas without a canonical key, two of
which are the same value written in two ways.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable

import numpy as np

from mm_spine.processors.answers import checker
from mm_spine.types import AnswerSpec, Question, Rollout
from mm_spine.voting import make_group

_STEPS = (
    "Note that the angle at the centre is twice the angle on the circle, so $\\angle AOB = 2 \\cdot 35^\\circ$. ",
    "The area is $\\frac{1}{2} \\cdot 6 \\cdot 8 = 24$, and the other triangle is similar to it with ratio 3. ",
    "Let $x$ be the length of the side; by Pythagoras $x^2 + 9 = 25$, which gives $x = 4$ because $x > 0$. ",
    "Because the figure is symmetric, only half of the cases need to be counted, and none is counted twice. ",
    "Looking at the second row of the table, the value rises by 12 each year, so it cannot be the third option. ",
    "We check this: substituting back gives the same result on both sides of the equation, as it should. ",
)
_FORMULAS: tuple[Callable[[int, int], tuple[str, ...]], ...] = (
    lambda a, b: (rf"\frac{{{a}\sqrt{{{b}}}}}{{2}}", rf"{a}\sqrt{{{b}}}/2", rf"{a}\sqrt{{{b}}}", rf"\sqrt{{{a}}}"),
    lambda a, b: (rf"{a}\pi", rf"\pi \cdot {a}", rf"{b}\pi", rf"\frac{{{a}\pi}}{{{b}}}"),
    lambda a, b: (f"x^2+{a}x+{b}", f"{b}+x^2+{a}x", f"x^2-{a}x+{b}", f"{a}x+{b}"),
    lambda a, b: (f"({a}, {b})", rf"\left({a},{b}\right)", f"({b}, {a + 1})", f"[{a}, {b})"),
    lambda a, b: (rf"\frac{{\pi}}{{{a}}}", rf"\pi/{a}", rf"\frac{{\pi}}{{{b}}}", rf"\frac{{{b}\pi}}{{{a}}}"),
    lambda a, b: (rf"{a}-{b}\sqrt{{2}}", rf"-{b}\sqrt{{2}}+{a}", rf"{a}+{b}\sqrt{{2}}", rf"{b}\sqrt{{2}}"),
)


def _response(answer: str, draw: random.Random) -> str:
    steps = "".join(draw.choice(_STEPS) for _ in range(6))
    return f"{steps}Therefore the answer is $\\boxed{{{answer}}}$."


def _letters(question: int, draw: random.Random) -> list[str]:
    return ["A", "B", "C", "D", "\\text{B}", "(C)"]


def _values(question: int, draw: random.Random) -> list[str]:
    a, b = draw.randint(2, 40), draw.randint(41, 99)
    numbers = [str(a), str(b), f"{a}.0", rf"\frac{{{a}}}{{{b}}}", f"{a}/{b}", f"{a * b:,}"]
    return numbers if question % 3 else [*_FORMULAS[question // 3 % len(_FORMULAS)](a, b), str(a), str(b)]


def _questions(
    spec: AnswerSpec, answers: Callable[[int, random.Random], list[str]], questions: int, votes: int
) -> list[tuple[Question, list[Rollout]]]:
    draw = random.Random(0)
    made = []
    for q in range(questions):
        said = draw.choices(answers(q, draw), (8, 5, 3, 2, 1, 1), k=votes)
        texts = [_response(answer, draw) for answer in said]
        none = np.zeros(0, np.float32)
        rollouts = [Rollout(str(q), i, (), text, none, None, "stop") for i, text in enumerate(texts)]
        made.append((Question(str(q), (), "", spec), rollouts))
    return made


def _measure(name: str, limit: float, made: list[tuple[Question, list[Rollout]]]) -> None:
    started = time.perf_counter()
    classes = sum(len(make_group(question, rollouts).vote.counts) for question, rollouts in made)
    seconds = time.perf_counter() - started
    votes = sum(len(rollouts) for _, rollouts in made)
    print(
        f"{name}: {votes:,} votes on {len(made):,} questions in {seconds:.2f} s (wanted: under {limit:g} s)", end="; "
    )
    print(f"{classes / len(made):.2f} classes a question, {len(checker.failures())} pairs not compared")


def main() -> None:
    """Print both figures."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--votes", type=int, default=64)
    options = parser.parse_args()
    letters = AnswerSpec("choice", ("12 cm", "14 cm", "16 cm", "none of these"))
    _measure("letters", 2, _questions(letters, _letters, options.questions, options.votes))
    _measure("mathematics", 30, _questions(AnswerSpec("math"), _values, options.questions, options.votes))


if __name__ == "__main__":
    main()
