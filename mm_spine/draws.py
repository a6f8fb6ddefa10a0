"""Random numbers. Every draw has its own generator; nothing uses the global random state."""

from __future__ import annotations

import hashlib

import numpy as np


def generator(*parts: object) -> np.random.Generator:
    """Return a generator seeded by a hash of `parts`, for example (seed, purpose, step, question id, rollout index)."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return np.random.Generator(np.random.Philox(int.from_bytes(digest, "little")))


def uniforms(count: int, *parts: object) -> np.ndarray:
    """Draw `count` uniform numbers in [0, 1) from the generator of `parts`."""
    return generator(*parts).random(count)
