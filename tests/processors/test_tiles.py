"""Questions for models that cut images into tiles."""

from __future__ import annotations

import logging

import pytest
import torch
from families import VISION, ask
from PIL import Image
from tiny import inputs, tiny_processor

from mm_spine.policy.families import FAMILIES
from mm_spine.processors import tiles
from mm_spine.processors.chat import Chat
from mm_spine.processors.tiles import runs
from mm_spine.processors.vision import BadQuestion
from mm_spine.types import AnswerSpec, Question

TILES = tuple(kind for kind in VISION if not FAMILIES[kind].mergers)
SPEC = AnswerSpec("integer")


def test_runs_of_image_tokens() -> None:
    assert runs(torch.tensor([0, 1, 1, 0, 1])) == ((1, 3), (4, 5))
    assert runs(torch.tensor([1])) == ((0, 1),)
    assert runs(torch.tensor([0, 0])) == ()


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("kind", TILES)
def test_tokens_and_tiles_are_those_of_the_processor(kind: str, images: int) -> None:
    question = ask(kind, (images,))[0]
    encoded, made = FAMILIES[kind].encode(question, tiny_processor(kind), None, None), inputs(question, (), kind)
    assert torch.equal(encoded.ids_L, made["input_ids"][0])
    assert len(encoded.images) == images
    own = torch.cat([image.pixel_values for image in encoded.images])
    assert torch.equal(own, made["pixel_values"].flatten(0, -4))
    assert [image.grid_thw[0] for image in encoded.images] == [len(image.pixel_values) for image in encoded.images]


@pytest.mark.parametrize("kind", TILES)
def test_marks_say_where_images_go_also_where_they_are_special_tokens(kind: str) -> None:
    processor, question = tiny_processor(kind), ask(kind, (2,))[0]

    def text(prompt: str) -> str:
        made = FAMILIES[kind].encode(Question("q", question.images, prompt, SPEC), processor, None, None)
        return processor.tokenizer.decode(made.ids_L[made.types_L == 0].tolist()).replace("\n", "")

    assert text("Add <image> and <image>.") == text("Add <image1> and <image2>.")
    swapped = [Question("q", question.images, f"<image{i}> <image{j}>", SPEC) for i, j in ((1, 2), (2, 1))]
    keys = [[i.key for i in FAMILIES[kind].encode(q, processor, None, None).images] for q in swapped]
    assert keys[0] == keys[1][::-1] and keys[0][0] != keys[0][1]


@pytest.mark.parametrize("kind", TILES)
def test_a_vision_token_that_stands_for_no_image_is_refused(kind: str) -> None:
    for token in FAMILIES[kind].vision_tokens:
        with pytest.raises(BadQuestion, match="q: the question contains the special token"):
            FAMILIES[kind].encode(Question("q", (), f"See {token} now", SPEC), tiny_processor(kind), None, None)


def test_max_pixels_lowers_the_number_of_internvls_tiles(caplog: pytest.LogCaptureFixture) -> None:
    question = Question("q", (Image.effect_noise((84, 56), 60).convert("RGB"),), "Add.", SPEC)
    encode, processor = FAMILIES["internvl"].encode, tiny_processor("internvl")
    counts = [len(encode(question, processor, None, pixels).images[0].pixel_values) for pixels in (None, 2000, 700)]
    # At most four tiles of 28 x 28 pixels, with the whole image beside them if there are several: 2, and 1.
    assert counts == [5, 3, 1]
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("kind", "limits", "says"),
    [
        ("internvl", (10, 2000), "model.min_pixels: InternVLProcessor cuts images into tiles of its own"),
        ("llava_onevision", (None, 2000), "model.min_pixels and model.max_pixels: LlavaOnevisionProcessor cuts images"),
        ("gemma3", (None, 2000), "model.min_pixels and model.max_pixels: Gemma3Processor cuts images into tiles"),
    ],
)
def test_limits_that_have_no_effect_are_said_once(
    kind: str, limits: tuple[int | None, int], says: str, caplog: pytest.LogCaptureFixture
) -> None:
    tiles._warn.cache_clear()
    for question in (ask(kind, (0,))[0], ask(kind, (1,))[0], ask(kind, (1,))[0]):
        with caplog.at_level(logging.WARNING):
            FAMILIES[kind].encode(question, tiny_processor(kind), *limits)
    assert caplog.text.count(says) == 1


@pytest.mark.parametrize("kind", TILES)
def test_the_system_message_stands_before_the_question(kind: str) -> None:
    processor, question = tiny_processor(kind), ask(kind, (1,))[0]
    plain, told = (FAMILIES[kind].encode(question, processor, None, None, chat) for chat in (Chat(), Chat("Be brief.")))
    text = processor.tokenizer.decode(told.ids_L.tolist())
    assert text.index("Be brief.") < text.index(question.prompt)
    assert [image.key for image in told.images] == [image.key for image in plain.images]
