"""Name how a response to `digits` comes to its answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Literal

Habit = Literal["direct", "reasoned", "other"]


def habit(text: str) -> Habit:
    r"""Return `reasoned` if a digit is written before the `\boxed`, `direct` if none is, `other` without a box."""
    before, box, _ = text.partition("\\boxed")
    if not box:
        return "other"
    return "reasoned" if any(character.isdigit() for character in before) else "direct"


def shares(texts: Iterable[str]) -> Mapping[Habit, float]:
    """Return the share of each habit among the responses, in [0, 1]; empty without a response."""
    counts = Counter(map(habit, texts))
    return {name: count / counts.total() for name, count in counts.items()}
