#!/usr/bin/env python3
"""Check that a tie favours no label: who wins votes whose responses are drawn by uniform chance.

    python scripts/bench/fair_votes.py [--questions 100000] [--votes 8]

Prints each option's share of the votes won, and ends with 1 if one is more than half a point from its fair share.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence

import numpy as np

from mm_spine.types import Answer, AnswerSpec
from mm_spine.voting import vote

OPTIONS = {"choice": ("A", "B", "C", "D"), "yes_no": ("no", "yes")}
LIMIT = 0.005


def shares(kind: str, options: Sequence[str], questions: int, votes: int) -> dict[str, float]:
    """Return the share of `questions` that each option wins, with `votes` uniform responses to each."""
    answers = [Answer(option, option) for option in options]
    drawn = np.random.default_rng(0).integers(0, len(options), (questions, votes)).tolist()
    spec = AnswerSpec(kind)
    won = Counter(vote([answers[i] for i in row], spec, f"question-{n}")[0].answer for n, row in enumerate(drawn))
    return {option: won[option] / questions for option in options}


def main() -> int:
    """Print the shares of every kind in `OPTIONS`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--questions", type=int, default=100_000)
    parser.add_argument("--votes", type=int, default=8)
    asked = parser.parse_args()
    worst = 0.0
    for kind, options in OPTIONS.items():
        found = shares(kind, options, asked.questions, asked.votes)
        apart = max(abs(share - 1 / len(options)) for share in found.values())
        worst = max(worst, apart)
        print(f"{kind}: " + "  ".join(f"{option} {100 * share:.2f} %" for option, share in found.items()), end="")
        print(f"  (fair: {100 / len(options):.2f} %, farthest {100 * apart:.2f} points)")
    return int(worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
