"""The tokens that end a response: united from generation config, config, tokenizer and chat template."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

ANSWER = "mm-spine's own answer"
QUESTION = "mm-spine's own question"


def end_ids(config: Any, generation_config: Any, processor: Any, tokenizer: Any) -> tuple[int, ...]:
    """Return the token ids that end a response, ascending: those that any of the four sources names.

    A source may lack them or differ: base models end a text with another token than chats do, and a generation config
    may be missing. Ids outside the vocabulary are left out.
    """
    text = config.get_text_config()
    named = [getattr(source, "eos_token_id", None) for source in (generation_config, config, text)]
    named += [tokenizer.eos_token_id, turn_end(processor, tokenizer)]
    return tuple(sorted({i for ids in named for i in _listed(ids) if 0 <= i < text.vocab_size}))


def turn_end(processor: Any, tokenizer: Any) -> int | None:
    """Return the id of the token by which the chat template closes an assistant's turn, None if there is none.

    Raises whatever the template raises.
    """
    if not getattr(processor, "chat_template", None):
        return None
    chat = [{"role": "user", "content": _content(processor, tokenizer, QUESTION)}]
    chat.append({"role": "assistant", "content": _content(processor, tokenizer, ANSWER)})
    text = processor.apply_chat_template(chat, tokenize=False)
    _, answer, rest = text.rpartition(ANSWER)
    if not answer:
        return None
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    special |= set(tokenizer.all_special_ids)
    ids = tokenizer(rest, add_special_tokens=False)["input_ids"]
    # Only a token that follows the answer at once closes the turn: not the one that opens the next.
    return ids[0] if ids and ids[0] in special else None


def _content(processor: Any, tokenizer: Any, text: str) -> Any:
    return text if processor is tokenizer else [{"type": "text", "text": text}]


def _listed(ids: Any) -> Iterator[int]:
    if isinstance(ids, int):
        yield ids
    elif ids is not None:
        yield from ids
