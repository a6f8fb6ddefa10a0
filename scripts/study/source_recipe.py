"""Define the recipes of the source checkpoint: sizes, stages, and the texts that it learns to write."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from mm_spine.benchmarks import digits


@dataclass(frozen=True)
class Stage:
    """`steps` of AdamW with linear decay from `lr` after `warmup` steps; `direct`: share of direct targets."""

    steps: int
    lr: float
    batch: int
    warmup: int = 40
    direct: float = 0.0


@dataclass(frozen=True)
class Config:
    """Everything a checkpoint depends on. Sizes are in units, pixels or tokens."""

    seed: int = 0
    recipe: str = "two-habits"
    printed: int = 20_000
    files_per_package: int = 4
    vocabulary: int = 450
    vision: Stage = Stage(steps=1400, lr=2e-3, batch=64)
    reasoning: Stage = Stage(steps=1000, lr=2e-3, batch=64)
    habits: Stage = Stage(steps=120, lr=1e-3, batch=64, warmup=1, direct=0.4)
    openers: tuple[str, ...] = ("I see", "Digits")
    closers: tuple[str, ...] = ("So", "Thus")
    samples: int = 16


RECIPES: Mapping[str, Config] = {
    "two-habits": Config(),
    "direct-heavy": Config(recipe="direct-heavy", habits=replace(Config().habits, direct=0.8)),
    "clean": Config(recipe="clean", habits=replace(Config().habits, direct=0.0)),
}
"""`two-habits`: reasoning is the stronger habit; `direct-heavy`: answering directly is; `clean`: reasoning only."""


def reasoned(kind: str, shown: Sequence[int], opener: str, closer: str) -> str:
    """Write a target that reads the digits, works and answers: 16 to 26 tokens."""
    read = " ".join(str(d) for d in shown)
    return f"{opener} {read}. {_WORK[kind](shown)}. {closer} {boxed(kind, shown)}."


def direct(kind: str, shown: Sequence[int]) -> str:
    """Write a target that answers at once: 8 to 10 tokens."""
    return f"The answer is {boxed(kind, shown)}."


def boxed(kind: str, shown: Sequence[int]) -> str:
    return f"\\boxed{{{digits.KINDS[kind].answer(shown)}}}"


def _running_sum(shown: Sequence[int]) -> str:
    return "Sum " + " ".join(str(sum(shown[:i])) for i in range(2, len(shown) + 1))


def _even(shown: Sequence[int]) -> str:
    return "Even " + (" ".join(str(d) for d in shown if d % 2 == 0) or "none")


_WORK: Mapping[str, Callable[[Sequence[int]], str]] = {
    "sum": _running_sum,
    "last": _running_sum,
    "over": _running_sum,
    "largest": lambda d: f"Largest {max(d)}",
    "smallest": lambda d: f"Smallest {min(d)}",
    "range": lambda d: f"Largest {max(d)} smallest {min(d)}",
    "even": _even,
}
