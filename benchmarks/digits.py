"""The embedded benchmark: questions about two or three REAL handwritten digits side by side.

Data: Optical Recognition of Handwritten Digits, test part (1,797 images of 8 x 8 pixels, 17 grey levels), as
shipped inside scikit-learn (`sklearn.datasets.load_digits`). Licence CC BY 4.0.
Citation: E. Alpaydin, C. Kaynak (1998), Optical Recognition of Handwritten Digits, UCI Machine Learning
Repository, https://doi.org/10.24432/C50P49.

A fixed permutation within each class splits the images into three disjoint sets:

- `tune` (1,020 images): the only set whose labels may be used for decisions. Questions 0-255 are built like those of
  `adapt`, questions 256-511 like those of `held_out`.
- `adapt` (80 images): 64 composites with four questions each. Every image is in two composites, so eight questions,
  and their votes, depend on how it is read.
- `held_out` (640 images): 256 composites with one question each. Every image is used once, so resampling questions
  resamples images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from mm_spine.benchmarks.benchmark import Benchmark
from mm_spine.types import AnswerSpec, LabelledSet, Question

MODEL_DIR = Path(__file__).resolve().parent / "digits_model"
"""The shipped source checkpoint, a tiny Qwen2.5-VL. Its README.md says how it was trained and chosen."""

SPLITS = ("tune", "adapt", "held_out")
CELL = 28
"""Pixels per side of the cell of a digit. With patch 14 and merge 2 this is one image token per digit."""

_SEED = 1797
_SHARED_PER_CLASS, _SINGLE_PER_CLASS = 8, 64
_QUESTIONS_PER_COMPOSITE = 4


INTEGER, YES_NO = AnswerSpec(kind="integer"), AnswerSpec(kind="yes_no")


@dataclass(frozen=True)
class QuestionKind:
    """One kind of question: ways to ask it, its answer given the true digits, and the spec of that answer."""

    phrasings: tuple[str, ...]
    answer: Callable[[Sequence[int]], str]
    spec: AnswerSpec = INTEGER


@dataclass(frozen=True)
class PlannedQuestion:
    """A question before its image is drawn: which images of `load_digits` it shows, left to right, and what it asks."""

    id: str
    digits: tuple[int, ...]
    kind: str
    prompt: str


KINDS: Mapping[str, QuestionKind] = {
    "sum": QuestionKind(
        ("What is the sum of the digits?", "Add up all the digits.", "What do the digits add up to?"),
        lambda d: str(sum(d)),
    ),
    "last": QuestionKind(
        ("What is the last digit of the sum?", "In which digit does the sum end?", "Give the sum modulo ten."),
        lambda d: str(sum(d) % 10),
    ),
    "largest": QuestionKind(
        ("Which digit is the largest?", "What is the largest digit?", "Find the greatest digit."),
        lambda d: str(max(d)),
    ),
    "smallest": QuestionKind(
        ("Which digit is the smallest?", "What is the smallest digit?", "Find the least digit."),
        lambda d: str(min(d)),
    ),
    "range": QuestionKind(
        (
            "What is the largest digit minus the smallest?",
            "How far apart are the largest and the smallest digit?",
            "Subtract the smallest digit from the largest.",
        ),
        lambda d: str(max(d) - min(d)),
    ),
    "even": QuestionKind(
        ("How many digits are even?", "Count the even digits.", "How many even digits do you see?"),
        lambda d: str(sum(x % 2 == 0 for x in d)),
    ),
    "over": QuestionKind(
        ("Is the sum greater than 10?", "Do the digits add up to more than 10?", "Does the sum exceed 10?"),
        lambda d: "yes" if sum(d) > 10 else "no",
        YES_NO,
    ),
}


def load(split: str, source: str | None = None, prompt: str = "reason") -> LabelledSet:
    """Return the questions of `split` (tune, adapt or held_out) and their key. They are the same every time.

    Prompts have no instructions, so `prompt` changes nothing. Raises ValueError for another split, or a `source`.
    """
    if source is not None:
        raise ValueError(f"source={source!r}: digits is embedded and has no other source; leave it out")
    planned = plan(split)
    pixels, targets = _source()
    composites = {question.digits for question in planned}
    images = {digits: render(_generator(split, digits[0]), pixels[list(digits)]) for digits in composites}
    questions, key = [], {}
    for question in planned:
        kind = KINDS[question.kind]
        questions.append(
            Question(question.id, (images[question.digits],), question.prompt, kind.spec, benchmark="digits")
        )
        key[question.id] = (kind.answer([int(targets[digit]) for digit in question.digits]),)
    return LabelledSet(tuple(questions), key, tags={question.id: {"kind": question.kind} for question in planned})


def plan(split: str) -> tuple[PlannedQuestion, ...]:
    """Plan the questions of `split`, without their images. Raises ValueError for another split."""
    if split not in SPLITS:
        raise ValueError(f"digits has no split {split!r}; take one of {', '.join(SPLITS)}")
    rng = np.random.default_rng([_SEED, SPLITS.index(split), 0])
    digits = _digits_by_split()[split]
    shared, single = digits[:, :_SHARED_PER_CLASS], digits[:, -_SINGLE_PER_CLASS:]
    composites: list[tuple[tuple[int, ...], int]] = []
    if split != "held_out":
        twice = np.concatenate([rng.permutation(shared.ravel()) for _ in range(2)])
        composites += [(group, _QUESTIONS_PER_COMPOSITE) for group in _twos_and_threes(twice)]
    if split != "adapt":
        composites += [(group, 1) for group in _twos_and_threes(rng.permutation(single.ravel()))]
    asked = [(group, *question) for group, count in composites for question in _ask(rng, count)]
    return tuple(PlannedQuestion(f"digits/{split}/{index:04d}", *question) for index, question in enumerate(asked))


def render(rng: np.random.Generator, digits: Sequence[np.ndarray] | np.ndarray) -> Image.Image:
    """Draw 8 x 8 digits (ink 0-16) side by side, dark on white, in cells of CELL x CELL pixels.

    Every digit is enlarged three times, smoothly, and moved by 0 to 4 pixels down and right. Printed training digits
    are drawn in the same way, so the only difference between them and handwritten digits is the handwriting.
    """
    canvas = np.zeros((CELL, CELL * len(digits)), dtype=np.uint8)
    for cell, digit in enumerate(digits):
        ink = Image.fromarray(np.rint(np.asarray(digit) * (255 / 16)).astype(np.uint8))
        large = np.asarray(ink.resize((24, 24), Image.Resampling.BICUBIC))
        top, left = (int(v) for v in rng.integers(0, CELL - 24 + 1, size=2))
        canvas[top : top + 24, cell * CELL + left : cell * CELL + left + 24] = large
    return Image.fromarray(255 - canvas).convert("RGB")


@cache
def _source() -> tuple[np.ndarray, np.ndarray]:
    """Return the ink of all images, (1797, 8, 8) from 0 to 16, and their classes, (1797,)."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return data.images, data.target


@cache
def _digits_by_split() -> Mapping[str, np.ndarray]:
    """Map each split to its images, as (10, images per class) indices into `load_digits`."""
    rng = np.random.default_rng(_SEED)
    _, targets = _source()
    by_class = [rng.permutation(np.flatnonzero(targets == c)) for c in range(10)]
    first, second = _SHARED_PER_CLASS, _SHARED_PER_CLASS + _SINGLE_PER_CLASS
    # Each class of `tune` has as many images as the smallest class.
    fewest = min(len(digits) for digits in by_class)
    return {
        "adapt": np.stack([digits[:first] for digits in by_class]),
        "held_out": np.stack([digits[first:second] for digits in by_class]),
        "tune": np.stack([digits[second:fewest] for digits in by_class]),
    }


def _twos_and_threes(digits: np.ndarray) -> Iterator[tuple[int, ...]]:
    """Cut (N,) digits, N a multiple of 5, into groups of 2, 3, 2, 3, ..."""
    for five in digits.reshape(-1, 5):
        yield tuple(int(digit) for digit in five[:2])
        yield tuple(int(digit) for digit in five[2:])


def _ask(rng: np.random.Generator, count: int) -> Iterator[tuple[str, str]]:
    """Draw the kinds and prompts of `count` questions of different kinds about one composite."""
    for kind in rng.choice(list(KINDS), size=count, replace=False):
        yield str(kind), str(rng.choice(KINDS[kind].phrasings))


def _generator(split: str, digit: int) -> np.random.Generator:
    return np.random.default_rng([_SEED, SPLITS.index(split), 1, digit])


class DigitsBenchmark(Benchmark):
    """The embedded benchmark as the commands see it."""

    @property
    def splits(self) -> tuple[str, ...]:
        return SPLITS

    def load(self, split: str, source: str | None = None, prompt: str = "reason") -> LabelledSet:
        return load(split, source, prompt)


BENCHMARK = DigitsBenchmark(
    name="digits",
    adapt_split="adapt",
    held_out_split="held_out",
    default_model=MODEL_DIR,
    summary="Arithmetic questions about real handwritten digits; embedded, offline.",
    citation="E. Alpaydin, C. Kaynak (1998). Optical Recognition of Handwritten Digits. UCI Machine Learning "
    "Repository, https://doi.org/10.24432/C50P49; the copy in scikit-learn's load_digits.",
    licence="CC BY 4.0 (the images)",
    kind="integer",
    breakdowns=("kind",),
)
