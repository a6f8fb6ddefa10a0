"""The benchmark `flags`: what is seen must meet what is known."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mm_spine.benchmarks.countries import Country, countries

ALIKE: Mapping[str, str] = {"TD": "RO", "MC": "ID", "LU": "NL"}
"""Countries that are not shown, and those whose flags look the same when they are this small, or faded."""

_SEED = 4321
_COUNTS = {"tune": 72, "adapt": 48, "held_out": 72}

SHOWN: tuple[Country, ...] = tuple(country for country in countries() if country.code not in ALIKE)
"""The countries whose flags are shown, in the order of their codes."""


def _codes() -> dict[str, tuple[str, ...]]:
    order = iter(np.random.default_rng(_SEED).permutation([country.code for country in SHOWN]).tolist())
    return {split: tuple(next(order) for _ in range(count)) for split, count in _COUNTS.items()}


CODES: Mapping[str, tuple[str, ...]] = _codes()
"""The countries of each split: no country is in two of them."""
