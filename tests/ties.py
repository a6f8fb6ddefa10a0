"""Which of several tied answers a vote takes."""

from __future__ import annotations

import hashlib


def first_of(*names: str, question_id: str = "q") -> str:
    """The one of equally large classes that wins: by the definition of the hash, written out once more."""
    digests = {
        name: hashlib.blake2b(f"tie\x1f{question_id}\x1f{name}".encode(), digest_size=16).digest() for name in names
    }
    return min(names, key=lambda name: digests[name])
