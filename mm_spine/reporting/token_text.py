"""The text of single tokens, by the tokenizer that a run saved."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from mm_spine.reporting.saved_run import is_inside

MAX_UTF8_BYTES = 4
"""Bytes of one character, so also the most tokens that one character is spread over."""


def load_tokenizer(run: Path) -> Tokenizer | None:
    """Return the tokenizer in the run's adapted/; None when there is none or it cannot be read."""
    path = run / "adapted" / "tokenizer.json"
    if not path.is_file() or not is_inside(path, run):
        return None
    try:
        return Tokenizer.from_file(str(path))
    except Exception:  # tokenizers raises bare Exception on a file that it cannot parse
        return None


def token_texts(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """Return the text of each token.

    Of tokens that make a character only together, the last one holds the character and the others hold "".
    """
    texts: list[str] = []
    pending: list[int] = []
    for token in ids:
        pending.append(token)
        text = _decode(tokenizer, pending)
        # Decoding gives U+FFFD for the bytes of an incomplete character.
        complete = not text.endswith("\ufffd") or len(pending) == MAX_UTF8_BYTES
        texts.append(text if complete else "")
        if complete:
            pending = []
    if pending:
        texts[-1] = _decode(tokenizer, pending)
    return texts


def _decode(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    text = tokenizer.decode(list(ids), skip_special_tokens=False)
    # SentencePiece marks a leading space by U+2581 and drops it at the start of a text: put it back.
    starts_with_space = (tokenizer.id_to_token(ids[0]) or "").startswith("\u2581")
    return f" {text}" if starts_with_space and not text.startswith(" ") else text
