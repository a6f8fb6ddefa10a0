"""The text of single tokens."""

from __future__ import annotations

from tokenizers import Tokenizer

from mm_spine.benchmarks.digits import MODEL_DIR
from mm_spine.reporting import token_text


def test_pieces_join_to_the_text() -> None:
    tokenizer = Tokenizer.from_file(str(MODEL_DIR / "tokenizer.json"))
    text = "I see 5. Ω and 汉 and 🦴"
    ids = tokenizer.encode(text).ids
    pieces = token_text.token_texts(tokenizer, ids)
    assert len(pieces) == len(ids) and "".join(pieces) == text
    assert token_text.token_texts(tokenizer, ids[:-1])[-1] != "", "half a character is shown as such"
    assert token_text.token_texts(tokenizer, [10**8]) == [""]
