"""Every random number comes from a generator of its own; there is no global random state."""

from __future__ import annotations

import hashlib

import numpy as np


def generator(*parts: object) -> np.random.Generator:
    """A counter-based generator seeded by a hash of `parts`, e.g. (seed, purpose, step, question id, index)."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return np.random.Generator(np.random.Philox(int.from_bytes(digest, "little")))


def uniforms(count: int, *parts: object) -> np.ndarray:
    """`count` uniforms in [0, 1)."""
    return generator(*parts).random(count)
