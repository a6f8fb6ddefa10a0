"""The user's turn: markers become images, one resizing path, and the embedded benchmark bit for bit as it was."""

from __future__ import annotations

import importlib
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny import tiny_image, tiny_processor
from transformers import AutoProcessor

from mm_spine.benchmarks import digits
from mm_spine.processors.chat import content, encode, encode_text
from mm_spine.processors.vision import BadQuestion
from mm_spine.types import AnswerSpec, ImageLike, Question

TOKEN = 28 * 28


def ask(prompt: str, *images: ImageLike) -> Question:
    return Question("q-7", images, prompt, AnswerSpec(kind="text"))


def short(parts: list[dict[str, Any]]) -> list[str | int]:
    """Images as their numbers, text as text."""
    return [part[part["type"]] for part in parts]


# --- markers ----------------------------------------------------------------------------------------------------------

TURNS: dict[str, tuple[str, int, list[str | int]]] = {
    "no marker, no image": ("What?", 0, ["What?"]),
    "no marker: images first": ("What?", 2, [1, 2, "What?"]),
    "marker in front": ("<image1>\nWhat?", 1, [1, "\nWhat?"]),
    "marker inside": ("See <image1>. What?", 1, ["See ", 1, ". What?"]),
    "marker at the end": ("See <image1>", 1, ["See ", 1]),
    "marker alone": ("<image1>", 1, [1]),
    "with a space": ("See <image 1>.", 1, ["See ", 1, "."]),
    "second mention is words": ("<image1> In <image1>, what?", 1, [1, " In image 1, what?"]),
    "both spellings are one marker": ("<image1> In <image 1>, what?", 1, [1, " In image 1, what?"]),
    "order of the text": ("<image2> after <image1>, not <image2>", 2, [2, " after ", 1, ", not image 2"]),
    "unnamed images first": ("Then <image2>?", 3, [1, 3, "Then ", 2, "?"]),
    "side by side": ("<image1><image2>", 2, [1, 2]),
    "beyond the images": ("<image1> and <image2>", 1, [1, " and image 2"]),
    "text only": ("What does <image1> show?", 0, ["What does image 1 show?"]),
    "zero": ("<image0> <image1>", 1, ["image 0 ", 1]),
    "leading zero": ("<image01>", 1, [1]),
    "two digits": ("<image10> and <image1>", 10, [2, 3, 4, 5, 6, 7, 8, 9, 10, " and ", 1]),
    "no marker at all": ("<image> <imagex> < image1> <image-x>", 0, ["<image> <imagex> < image1> <image-x>"]),
    "a number too long to be one": ("<image" + "9" * 5000 + ">", 0, ["<image" + "9" * 5000 + ">"]),
    "marker in words": ("a<image1>b<image1>c", 1, ["a", 1, "bimage 1c"]),
}


@pytest.mark.parametrize(("prompt", "n", "parts"), TURNS.values(), ids=TURNS.keys())
def test_markers(prompt: str, n: int, parts: list[str | int]) -> None:
    assert short(content(prompt, n)) == parts


@given(st.lists(st.sampled_from(["<image1>", "<image 2>", "<image3>", "a", " ", "<", "\n"])), st.integers(0, 3))
def test_every_image_stands_once_and_no_text_is_lost(pieces: list[str], n: int) -> None:
    parts = short(content("".join(pieces), n))
    assert sorted(part for part in parts if isinstance(part, int)) == list(range(1, n + 1))
    own = [piece for piece in pieces if not piece.startswith("<image")]
    shown = "".join(part for part in parts if isinstance(part, str))
    for number in range(1, 4):
        shown = shown.replace(f"image {number}", "")
    assert shown == "".join(own)
    assert "" not in parts


def test_images_are_encoded_in_the_order_of_the_text() -> None:
    a, b, c = Image.new("RGB", (28, 28)), Image.new("RGB", (56, 28)), Image.new("RGB", (84, 28))
    found = encode(ask("First <image3>, then <image1>.", a, b, c), tiny_processor())
    assert [image.grid_thw.tolist() for image in found.images] == [[1, 2, 4], [1, 2, 6], [1, 2, 2]]
    runs, _ = torch.unique_consecutive(found.types_L, return_counts=True)
    lengths = torch.unique_consecutive(found.types_L, return_counts=True)[1]
    assert lengths[runs == 1].tolist() == [2, 3, 1]


def test_text_stands_around_its_image() -> None:
    processor = tiny_processor()
    found = encode(ask("Add <image1> up, image of <image1>.", tiny_image(0)), processor)
    text = processor.tokenizer.decode(found.ids_L[found.types_L == 0])
    assert "Add <|vision_start|><|vision_end|> up, image of image 1." in text


def test_a_prompt_of_a_marker_alone_can_be_asked() -> None:
    assert len(encode(ask("<image1>", tiny_image(0)), tiny_processor()).images) == 1


def test_a_marker_hides_no_special_token() -> None:
    with pytest.raises(BadQuestion, match="^q-7: .*special token"):
        encode(ask("<image1> <|image_pad|>", tiny_image(0)), tiny_processor())


def test_an_image_token_that_the_tokenizer_does_not_list_is_refused(tmp_path: Path) -> None:
    """It would stand for an image that does not exist; transformers would raise StopIteration."""
    folder = Path(shutil.copytree(digits.MODEL_DIR, tmp_path / "model"))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["extra_special_tokens"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    processor = AutoProcessor.from_pretrained(folder)
    assert "<|image_pad|>" not in processor.tokenizer.all_special_tokens
    for question in (ask("What is <|image_pad|>?", tiny_image(0)), ask("What is <|image_pad|>?")):
        with pytest.raises(BadQuestion, match=r"^q-7: .*special token <\|image_pad\|>"):
            encode(question, processor)
    with pytest.raises(BadQuestion, match=r"^q-7: .*special token <\|image_pad\|>"):
        encode_text(ask("What is <|image_pad|>?"), processor.tokenizer)


# --- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["adapt", "held_out"])
def test_digits_are_what_the_processor_alone_makes_of_them(split: str) -> None:
    """Their images need no resizing: ids and pixel values must be those of the processor, bit for bit."""
    for question in digits.load(split).questions[::25]:
        content = [{"type": "image"}, {"type": "text", "text": question.prompt}]
        text = tiny_processor().apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        made = tiny_processor()(text=[text], images=list(question.images), return_tensors="pt")
        found = encode(question, tiny_processor())
        assert torch.equal(found.ids_L, made["input_ids"][0])
        assert torch.equal(found.images[0].pixel_values, made["pixel_values"])
        assert torch.equal(found.images[0].grid_thw, made["image_grid_thw"][0])


def test_resized_images_have_the_grid_of_the_processor() -> None:
    """Where a side rounds to no token at all (14 pixels or less), qwen-vl-utils keeps the length, the processor not."""
    draw = random.Random(0)
    for _ in range(40):
        image = Image.new("RGB", (draw.randint(15, 900), draw.randint(15, 900)))
        own = tiny_processor().image_processor(images=[image], return_tensors="pt")["image_grid_thw"][0]
        found = encode(ask("What?", image), tiny_processor())
        assert torch.equal(found.images[0].grid_thw, own)
        assert (found.types_L == 1).sum() == own.prod() // 4


def test_images_are_resized_by_qwen_vl_utils() -> None:
    from qwen_vl_utils import fetch_image

    image = Image.effect_noise((301, 97), 60).convert("RGB")
    limits = {"min_pixels": 10 * TOKEN, "max_pixels": 20 * TOKEN}
    resized = fetch_image({"image": image, **limits}, image_patch_size=14)
    assert resized.size != image.size
    (found,) = encode(ask("What?", image), tiny_processor(), **limits).images
    (exact,) = encode(ask("What?", resized), tiny_processor()).images
    assert torch.equal(found.pixel_values, exact.pixel_values)


LIMITS = [(900, None, None, 64), (900, None, 8 * TOKEN, 4), (28, 100 * TOKEN, 10**6, 100), (28, None, None, 1)]


@pytest.mark.parametrize(("side", "least", "most", "tokens"), LIMITS)
def test_limits_are_the_processors_unless_given(side: int, least: int | None, most: int | None, tokens: int) -> None:
    (found,) = encode(ask("What?", Image.new("RGB", (side, side))), tiny_processor(), least, most).images
    assert found.grid_thw.prod() / 4 == tokens


@pytest.mark.parametrize(("least", "most"), [(None, 700), (1, 783), (51_000, None), (5000, 4000)])
def test_limits_that_nothing_can_keep_are_no_fault_of_a_question(least: int | None, most: int | None) -> None:
    with pytest.raises(ValueError, match="max_pixels=.*min_pixels=.*`model`") as error:
        encode(ask("What?", tiny_image(0)), tiny_processor(), least, most)
    assert not isinstance(error.value, BadQuestion)


def test_an_image_too_thin_for_the_limit_costs_its_question() -> None:
    with pytest.raises(BadQuestion, match="^q-7: too thin an image for max_pixels"):
        encode(ask("What?", Image.new("RGB", (1900, 10))), tiny_processor(), None, 8 * TOKEN)


def test_qwen_vl_utils_says_nothing_when_imported(capfd: pytest.CaptureFixture[str]) -> None:
    importlib.reload(importlib.import_module("qwen_vl_utils.vision_process"))
    assert capfd.readouterr() == ("", "")
