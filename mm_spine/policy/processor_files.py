"""Whether a model folder's tokenizer, processor, chat template and end tokens are there and fit together."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from mm_spine.policy.errors import ModelError
from mm_spine.policy.families import Family
from mm_spine.policy.parameters import first_line
from mm_spine.policy.turn_end import QUESTION, end_ids
from mm_spine.processors.chat import PLAIN, VISION_SPECIALS, Chat, special_tokens

RENDER_SECONDS = 10.0
"""Longest time that a chat template may take for a question of a few words. Our choice."""

TOKENIZER_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"))
"""Each of these sets of files holds a whole tokenizer."""

Value = TypeVar("Value")


def check_processor(folder: Path, family: Family) -> None:
    """Load tokenizer and processor and render a question. Raises ModelError naming what is missing or does not fit."""
    if not any(all((folder / name).is_file() for name in names) for names in TOKENIZER_FILES):
        raise ModelError(f"model={folder}: no tokenizer.json there (nor vocab.json and merges.txt); fetch it again")
    if not (folder / "tokenizer_config.json").is_file():
        # Without it transformers guesses the special tokens, and a chat template may be lost.
        raise ModelError(f"model={folder}: no tokenizer_config.json there; fetch it again")
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        processor = load_processor(folder, family)
        tokenizer = family.tokenizer(processor)
        size = len(tokenizer)
    except Exception as error:
        raise ModelError(
            f"model={folder}: its tokenizer or processor does not load ({first_line(error)}); fetch their files again"
        ) from error
    rows = config.get_text_config().vocab_size
    if size > rows:
        raise ModelError(
            f"model={folder}: its tokenizer has {size} tokens and its model {rows}: they are not of one model; "
            "fetch the folder again"
        )
    _check_vision_tokens(folder, family, config, tokenizer)
    _check_template(folder, family, processor)
    _check_ends(folder, config, processor, tokenizer)


def load_processor(folder: Path, family: Family) -> Any:
    """Return the processor of the folder, the tokenizer for a text-only model."""
    import transformers

    return getattr(transformers, family.auto_processor).from_pretrained(folder, trust_remote_code=False)


def check_chat(folder: Path, family: Family, processor: Any, chat: Chat) -> None:
    """Raise ModelError for a system message or a variable that the chat template of `folder` does not show or read."""
    for name in chat.arguments:
        if not re.search(rf"\b{re.escape(name)}\b", str(processor.chat_template)):
            raise ModelError(f"prompt.template_arguments: the chat template of {folder} has no {name!r}; leave it out")
    if chat == PLAIN:
        return
    system = (chat.system or "").strip()
    # A special token would end the system's turn, or stand for an image that does not exist.
    for token in sorted({*special_tokens(family.tokenizer(processor)), *VISION_SPECIALS}):
        if token in system:
            raise ModelError(f"prompt.system: it contains the special token {token}; take it out")
    turns = chat.turns([{"type": "text", "text": QUESTION}] if family.mergers else QUESTION)
    text = _rendered(
        folder,
        lambda: processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False, **chat.arguments),
        "leave out what it does not take: prompt.system or prompt.template_arguments",
    )
    if system not in text:
        raise ModelError(f"prompt.system: the chat template of {folder} leaves it out; write it into the questions")
    if text.count(QUESTION) != 1:
        raise ModelError(
            f"prompt: with this system message and these arguments the chat template of {folder} does not show the "
            "user's question once; change them"
        )


def _check_vision_tokens(folder: Path, family: Family, config: Any, tokenizer: Any) -> None:
    """Raise ModelError if the tokenizer lacks a vision token, or gives it another id than config.json."""
    if not family.mergers:
        return
    vocabulary = tokenizer.get_vocab()
    for token, key in (("<|image_pad|>", "image_token_id"), ("<|vision_start|>", "vision_start_token_id")):
        found, wanted = vocabulary.get(token), getattr(config, key, None)
        if found is None or wanted not in (None, found):
            raise ModelError(
                f"model={folder}: config.json says {key}={wanted}, and its tokenizer has {token} at {found}: they are "
                "not of one model; fetch the folder again"
            )


def _check_template(folder: Path, family: Family, processor: Any) -> None:
    """Raise ModelError if there is no chat template, or if it fails, hangs or loses what the user says."""
    if not getattr(processor, "chat_template", None):
        raise ModelError(
            f"model={folder}: no chat template (chat_template.jinja, or chat_template in tokenizer_config.json); "
            "give a model that is trained for chats, with its template"
        )
    content: Any = QUESTION
    if family.mergers:
        content = [{"type": "image", "image": "one"}, {"type": "text", "text": QUESTION}]
    chat = [{"role": "user", "content": content}]
    text = _rendered(folder, lambda: processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False))
    if text.count(QUESTION) != 1:
        raise ModelError(f"model={folder}: its chat template does not show the user's question once; fetch it again")
    if family.mergers and text.count("<|image_pad|>") != 1:
        raise ModelError(f"model={folder}: its chat template has no place for the image of a question; fetch it again")


def _check_ends(folder: Path, config: Any, processor: Any, tokenizer: Any) -> None:
    """Raise ModelError if nothing says which token ends a response, or if one that is named does not exist."""
    import transformers

    rows = config.get_text_config().vocab_size
    generation = None
    if (folder / "generation_config.json").is_file():
        try:
            generation = transformers.GenerationConfig.from_pretrained(folder)
        except Exception as error:
            raise ModelError(f"{folder / 'generation_config.json'}: {first_line(error)}; fetch it again") from error
    named = getattr(generation, "eos_token_id", None)
    for i in (named,) if isinstance(named, int) else named or ():
        if not isinstance(i, int) or not 0 <= i < rows:
            raise ModelError(
                f"{folder / 'generation_config.json'}: eos_token_id={i!r} is no token of this model, which has {rows}; "
                "fetch it again"
            )

    if not _rendered(folder, lambda: end_ids(config, generation, processor, tokenizer)):
        raise ModelError(
            f"model={folder}: no token ends a response: generation_config.json, config.json, the tokenizer and the "
            "chat template name none; set eos_token_id in generation_config.json"
        )


def _rendered(folder: Path, render: Callable[[], Value], cure: str = "fetch it again") -> Value:
    """Return what `render` returns. Raises ModelError if the chat template fails or takes too long; `cure` ends it."""
    # A thread, because a template may loop for ever; it is a daemon, so that it does not keep the process alive.
    done: list[Value] = []
    failed: list[BaseException] = []

    def work() -> None:
        try:
            done.append(render())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(RENDER_SECONDS)
    if done:
        return done[0]
    why = first_line(failed[0]) if failed else f"it takes over {RENDER_SECONDS:.0f} s"
    raise ModelError(f"model={folder}: its chat template cannot be used ({why}); {cure}")
