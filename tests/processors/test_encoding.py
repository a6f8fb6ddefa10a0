"""Encoding equals the processor's own, and each distinct image goes through the tower once."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from pictures import ask, file_of
from PIL import Image
from tiny import tiny_image, tiny_policy, tiny_processor, tiny_questions
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mm_spine.processors.chat import Chat, encode, encode_text, fewest_tokens
from mm_spine.types import AnswerSpec, Question


@pytest.mark.parametrize("images", [0, 1, 3])
def test_encoding_is_what_the_processor_makes_of_the_chat(images: int) -> None:
    (question,) = tiny_questions(1, images)
    content = [{"type": "image", "image": image} for image in question.images]
    chat = [{"role": "user", "content": [*content, {"type": "text", "text": question.prompt}]}]
    made = tiny_processor().apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    found = encode(question, tiny_processor())
    assert torch.equal(found.ids_L, made["input_ids"][0])
    assert torch.equal(found.types_L, made["mm_token_type_ids"][0])
    assert len(found.images) == images
    if images:
        assert torch.equal(torch.cat([i.pixel_values for i in found.images]), made["pixel_values"])
        assert torch.equal(torch.stack([i.grid_thw for i in found.images]), made["image_grid_thw"])


def test_pixel_limits_bound_the_image_tokens() -> None:
    image = Image.effect_noise((280, 140), 60)
    for least, most in ((None, 28 * 28 * 8), (28 * 28 * 60, None), (28 * 28 * 60, 28 * 28 * 80)):
        (found,) = encode(ask(image), tiny_processor(), least, most).images
        pixels = len(found.pixel_values) * 14 * 14
        assert (least or 0) <= pixels <= (most or pixels)


# --- cache ------------------------------------------------------------------------------------------------------------


def test_each_distinct_image_goes_through_the_tower_once() -> None:
    policy, calls = tiny_policy(), []
    policy.tower.register_forward_hook(lambda *_: calls.append(1))
    a, b = tiny_image(0), tiny_image(7)
    again = Image.open(io.BytesIO(file_of(a, "PNG")))
    prompts = [policy.prompt(ask(*images)) for images in ((a,), (a, b), (again, again), (b,))]
    assert len(calls) == 2
    assert (policy.images.misses, policy.images.hits) == (2, 6 - 2)
    first, second = prompts[0].features_ID, prompts[3].features_ID
    assert torch.equal(prompts[1].features_ID, torch.cat([first, second]))
    assert torch.equal(prompts[2].features_ID, torch.cat([first, first]))


def test_a_question_is_encoded_once() -> None:
    policy, calls = tiny_policy(), []
    question = tiny_questions(1)[0]
    encode_once = policy._encode
    policy._encode = lambda q: calls.append(q.id) or encode_once(q)  # type: ignore[method-assign]
    assert policy.can_ask(question) and policy.prompt(question) is policy.prompt(question)
    assert calls == ["q0"]


def test_features_are_bit_equal_however_they_are_asked_for() -> None:
    """From the cache, from a fresh cache, alone or beside other images: one image is one unit."""
    images = [tiny_image(i) for i in range(4)]
    alone = [tiny_policy().prompt(ask(image)).features_ID for image in images]
    together = tiny_policy().prompt(ask(*images)).features_ID
    assert torch.equal(together, torch.cat(alone))
    assert not together.requires_grad


def test_features_are_those_of_the_plain_tower() -> None:
    policy = tiny_policy()
    encoded = encode(ask(*[tiny_image(i) for i in range(3)]), tiny_processor())
    pixels = torch.cat([i.pixel_values for i in encoded.images])
    grids = torch.stack([i.grid_thw for i in encoded.images])
    with torch.no_grad():
        plain = torch.cat(list(policy.model.get_image_features(pixels, grids).pooler_output))
    found = torch.cat([policy.images.features(image) for image in encoded.images])
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [lambda p, g: (p + torch.eye(1, p.numel()).view_as(p) * 1e-6, g), lambda p, g: (p, g[[0, 2, 1]])],
    ids=["one patch value", "the grid"],
)
def test_a_different_image_never_has_the_key_of_another(change: Callable[..., Any]) -> None:
    from mm_spine.processors.chat import hashed

    (image,) = encode(ask(Image.effect_noise((84, 28), 50)), tiny_processor()).images
    pixels, grid = change(image.pixel_values, image.grid_thw)
    assert hashed(pixels, grid) != image.key == hashed(image.pixel_values, image.grid_thw)


@cache
def long_token_tokenizer() -> Any:
    """A byte-level tokenizer with tokens of up to 32 bytes, which joins letters and their accents as Qwen's does."""
    words = [" " * 32, "-" * 16, "congratulations", "naïveté", "数字哪个", "e\u0301", "\n\n\n"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False, max_token_length=32
    )
    tokenizer.train_from_iterator(words * 50, trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    made.add_tokens(["<tool_call>"])
    return made


LONG_TEXTS = (
    "Which digit?", " " * 5000 + "x" + " " * 5000, "congratulations" * 100, "e\u0301" * 999, "naïveté " * 50,
    "数字哪个" * 99, "-" * 3001, "a\n\n\nb" * 40, "<tool_call>" * 77, "\U0001f9ee" * 30, "half \ud800 here",
    "Left <image> right <image9>" * 20,
)  # fmt: skip


@pytest.mark.parametrize("prompt", LONG_TEXTS)
def test_no_prompt_has_fewer_tokens_than_are_told_without_tokenising_it(prompt: str) -> None:
    for tokenizer in (tiny_processor().tokenizer, long_token_tokenizer()):
        text = prompt.strip().encode("utf-8", "replace").decode()
        # The marks of images that a question does not have stay, or become words.
        told = fewest_tokens(Question("q", (), prompt, AnswerSpec("text")), tokenizer)
        assert told <= len(tokenizer(text.replace("<image9>", "image 9"))["input_ids"])


def test_how_many_tokens_are_told_without_tokenising() -> None:
    def told(prompt: str, tokenizer: Any) -> int:
        return fewest_tokens(Question("q", (), prompt, AnswerSpec("text")), tokenizer)

    tokenizer = long_token_tokenizer()
    # The longest token of dashes has 16, digits stand alone, and a whole number is rounded down.
    assert told("-" * 1600, tokenizer) == 100 - 1 == len(tokenizer("-" * 1600)["input_ids"]) - 1
    assert told("7" * 1600, tokenizer) == 1599
    # Nothing is known of a tokenizer that lacks bytes, or whose tokens take the white space beside them.
    assert told("7" * 1600, PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"7": 0}, "7")))) == 0
    greedy = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()))
    greedy.add_tokens([AddedToken("<hungry>", lstrip=True)])
    assert told("7" * 1600, greedy) == 0


# --- what a chat holds beside the question --------------------------------------------------------------------------

SWITCH = (
    "{% for m in messages %}{{ m.role }}: {% if m.content is string %}{{ m.content }}"
    "{% else %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}; {% endfor %}"
    "{% if add_generation_prompt %}assistant:{% if enable_thinking is defined and enable_thinking is false %}"
    " no thinking{% endif %}{% endif %}"
)


def test_a_system_message_and_template_arguments_reach_the_prompt_and_leave_the_template_as_it_is() -> None:
    question, processor = Question("q", (), "Add.", AnswerSpec("integer")), copy.deepcopy(tiny_processor())
    processor.chat_template = processor.tokenizer.chat_template = SWITCH
    chat = Chat("Be exact.", {"enable_thinking": False})
    text = "system: Be exact.; user: Add.; assistant: no thinking"
    made = [encode(question, processor, chat=chat), encode_text(question, processor.tokenizer, chat=chat)]
    assert [processor.tokenizer.decode(encoded.ids_L) for encoded in made] == [text, text]
    plain = [encode(question, processor), encode_text(question, processor.tokenizer)]
    assert [processor.tokenizer.decode(encoded.ids_L) for encoded in plain] == ["user: Add.; assistant:"] * 2
    assert processor.chat_template == SWITCH


def test_images_stay_with_the_user_when_a_system_message_precedes_them() -> None:
    (question,) = tiny_questions(1, 2)
    plain, found = encode(question, tiny_processor()), encode(question, tiny_processor(), chat=Chat("Read."))
    added = len(found.ids_L) - len(plain.ids_L)
    assert added > 0 and torch.equal(found.ids_L[added:], plain.ids_L)
    assert [image.key for image in found.images] == [image.key for image in plain.images]
