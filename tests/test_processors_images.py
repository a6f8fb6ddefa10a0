"""Images as people have them: each works or costs its question, with a reason; each distinct one is encoded once."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_image, tiny_policy, tiny_processor, tiny_questions

from mm_spine.processors.chat import encode
from mm_spine.processors.vision import ASPECT_LIMIT, BadQuestion, open_image
from mm_spine.types import AnswerSpec, ImageLike, Question

SPEC = AnswerSpec(kind="integer")
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def file_of(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def halves(left: Any = RED, right: Any = GREEN, mode: str = "RGB", size: tuple[int, int] = (56, 28)) -> Image.Image:
    """An image whose left and right halves differ, so that a rotation shows."""
    image = Image.new(mode, size, right)
    image.paste(left, (0, 0, size[0] // 2, size[1]))
    return image


def pixel(image: Image.Image, x: int, y: int) -> tuple[int, ...]:
    return tuple(image.getpixel((x, y)))


def ask(*images: ImageLike, name: str = "q-7") -> Question:
    return Question(name, images, "What is it?", SPEC)


# --- what works -------------------------------------------------------------------------------------------------------

UPRIGHT = {1: "", 3: "ROTATE_180", 6: "ROTATE_90", 8: "ROTATE_270", 2: "FLIP_LEFT_RIGHT", 4: "FLIP_TOP_BOTTOM"}


@pytest.mark.parametrize(("orientation", "undo"), UPRIGHT.items())
def test_exif_orientation_is_applied(orientation: int, undo: str) -> None:
    """A camera stores the sensor's picture and how to turn it: 6 means that the stored top is the right side."""
    upright = halves()
    stored = upright.transpose(Image.Transpose[undo]) if undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = open_image(file_of(stored, "PNG", exif=exif), "q")
    assert found.size == upright.size
    assert pixel(found, 0, 0) == RED and pixel(found, 55, 27) == GREEN


def test_palette_image() -> None:
    image = halves().quantize(4)
    assert image.mode == "P"
    found = open_image(file_of(image, "PNG"), "q")
    assert found.mode == "RGB" and pixel(found, 0, 0) == RED and pixel(found, 55, 0) == GREEN


def test_cmyk_image() -> None:
    found = open_image(file_of(halves((0, 255, 255, 0), (255, 0, 255, 0), "CMYK"), "TIFF"), "q")
    assert found.mode == "RGB" and pixel(found, 0, 0) == RED and pixel(found, 55, 0) == GREEN


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_keeps_its_greys(kind: str) -> None:
    """Scans and X-rays: 16-bit values must be scaled to 8 bits, not cut off at 255 (all white)."""
    values = np.linspace(0, 65535, 28 * 56).reshape(28, 56).astype(np.uint16)
    found = np.asarray(open_image(file_of(Image.fromarray(values), kind), "q"))
    assert found.shape == (28, 56, 3)
    assert np.abs(found[..., 0].astype(int) - values / 257).max() <= 1
    assert (found[..., 0] == found[..., 1]).all() and (found[..., 0] == found[..., 2]).all()


def test_thirty_two_bit_integers_hold_sixteen_bits_or_eight() -> None:
    """A 16-bit PGM arrives in mode I, and so do arrays of plain 8-bit values."""
    wide, narrow = np.array([[0, 257, 65535]], np.int32), np.array([[0, 128, 255]], np.int32)
    for values, expected in ((wide, [0, 1, 255]), (narrow, [0, 128, 255])):
        found = np.asarray(open_image(Image.fromarray(values), "q"))
        assert found[0, :, 0].tolist() == expected
    pgm = b"P5 2 1 65535\n" + struct.pack(">HH", 0, 32896)
    assert np.asarray(open_image(pgm, "q"))[0, :, 0].tolist() == [0, 128]


def test_alpha_is_laid_on_white() -> None:
    """What is transparent shows the page behind it, as on screen, not the colour hidden there."""
    image = halves((0, 0, 0, 0), (*BLUE, 255), "RGBA")
    found = open_image(file_of(image, "PNG"), "q")
    assert found.mode == "RGB" and pixel(found, 0, 0) == (255, 255, 255) and pixel(found, 55, 0) == BLUE
    half = open_image(file_of(halves((0, 0, 0, 128), (*BLUE, 255), "RGBA"), "PNG"), "q")
    assert all(abs(value - 127) <= 1 for value in pixel(half, 0, 0))


@pytest.mark.parametrize("mode", ["LA", "P"])
def test_transparency_of_other_kinds_is_laid_on_white(mode: str) -> None:
    if mode == "LA":
        file = file_of(halves((0, 0), (90, 255), "LA"), "PNG")
    else:
        palette = halves(1, 0, "P")
        palette.putpalette([*GREEN, *RED])
        file = file_of(palette, "PNG", transparency=1)
    assert pixel(open_image(file, "q"), 0, 0) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_first_frame_of_an_animation(kind: str) -> None:
    frames = [Image.new("RGB", (28, 28), colour) for colour in (RED, GREEN)]
    file = file_of(
        frames[0], kind, save_all=True, append_images=frames[1:], **{"lossless": True} if kind == "WEBP" else {}
    )
    found = open_image(file, "q")
    assert found.size == (28, 28) and pixel(found, 14, 14) == RED


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGBA", "YCbCr", "HSV", "LAB", "F", "I", "I;16", "PA", "RGBX"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    found = open_image(Image.new(mode, (28, 28)), "q")
    assert found.mode == "RGB" and found.size == (28, 28)


def test_path_string_bytes_and_image_are_the_same_picture(tmp_path: Path) -> None:
    image, path = halves(), tmp_path / "a.png"
    image.save(path)
    found = [open_image(source, "q") for source in (path, str(path), path.read_bytes(), image)]
    assert all(each.tobytes() == image.tobytes() for each in found)


def test_the_callers_image_is_not_changed() -> None:
    image = halves(mode="RGB")
    exif = image.getexif()
    exif[0x0112] = 6
    assert open_image(image, "q").size == (28, 56)
    assert image.size == (56, 28) and image.getexif()[0x0112] == 6


@pytest.mark.parametrize("most", [None, 28 * 28 * 8])
def test_a_one_pixel_image_can_be_asked(most: int | None) -> None:
    encoded = encode(ask(Image.new("RGB", (1, 1))), tiny_processor(), max_pixels=most)
    assert encoded.images[0].grid_thw.tolist() == [1, 2, 2]


# --- what does not ----------------------------------------------------------------------------------------------------


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be enormous."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


JPEG = file_of(tiny_image(3).resize((280, 280)), "JPEG")
PNG = file_of(tiny_image(3).resize((280, 280)), "PNG")

BAD: dict[str, tuple[ImageLike, str]] = {
    "truncated jpeg": (JPEG[: len(JPEG) // 2], "truncated"),
    "truncated png": (PNG[: len(PNG) // 2], "truncated"),
    "png header only": (PNG[:30], "cannot read"),
    "corrupt png": (PNG[:200] + b"\0" * 50 + PNG[250:], "cannot read"),
    "empty": (b"", "cannot read"),
    "text": (b"<html>404 not found</html>", "cannot read"),
    "missing": (Path("no/such/file.png"), "no/such/file.png"),
    "missing string": ("no/such/file.png", "no/such/file.png"),
    "null in name": ("a\0b.png", "cannot read"),
    "folder": (Path("."), "cannot read"),
    "bomb": (bomb(60_000, 60_000), "60000|pixels"),
    "over the limit": (bomb(10_000, 8_000), "10000x8000.*64,000,000"),
    "zero size": (Image.new("RGB", (0, 5)), "0x5"),
    "zero width png": (bomb(0, 10), "0x10|cannot read"),
    "wide": (Image.new("RGB", (200, 1)), "200x1"),
    "tall": (Image.new("L", (3, 1000)), "3x1000"),
    "not an image at all": (17, "int"),  # type: ignore[dict-item]
    "nothing": (None, "NoneType"),  # type: ignore[dict-item]
}


@pytest.mark.parametrize(("image", "words"), BAD.values(), ids=BAD.keys())
def test_a_bad_image_names_its_question_and_why(image: ImageLike, words: str) -> None:
    with pytest.raises(BadQuestion, match=rf"(?s)^q-7: .*({words})"):
        encode(ask(image), tiny_processor())


@pytest.mark.parametrize("prompt", ["", " \n\t"])
def test_an_empty_question_is_bad(prompt: str) -> None:
    with pytest.raises(BadQuestion, match="^q-7: .*empty"):
        encode(Question("q-7", (), prompt, SPEC), tiny_processor())


@pytest.mark.parametrize("token", ["<|image_pad|>", "<|vision_start|>", "<|im_end|>", "<|im_start|>"])
def test_special_tokens_in_a_question_are_bad(token: str) -> None:
    """Text that reads as a special token would insert an image that is not there, or end the user's turn."""
    with pytest.raises(BadQuestion, match="^q-7: .*special token"):
        encode(Question("q-7", (tiny_image(0),), f"What does {token} mean?", SPEC), tiny_processor())


@pytest.mark.parametrize("sides", [(199, 1), (1, 199)])
def test_the_widest_allowed_image_can_be_asked(sides: tuple[int, int]) -> None:
    assert max(sides) / min(sides) < ASPECT_LIMIT
    assert len(encode(ask(Image.new("RGB", sides)), tiny_processor()).images) == 1


def test_a_bomb_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(BadQuestion, match="10000x8000"):
        open_image(bomb(10_000, 8_000), "q-7")


def test_a_bad_image_among_good_ones_is_recorded_once(caplog: pytest.LogCaptureFixture) -> None:
    policy = tiny_policy()
    bad = ask(tiny_image(0), b"", tiny_image(1))
    with caplog.at_level("WARNING"):
        assert [policy.can_ask(bad) for _ in range(3)] == [False] * 3
    assert list(policy.skipped) == ["q-7"] and policy.skipped["q-7"].startswith("q-7: cannot read image")
    assert len([r for r in caplog.records if "q-7" in r.getMessage()]) == 1
    assert policy.can_ask(ask(tiny_image(0), name="other"))


# --- encoding ---------------------------------------------------------------------------------------------------------


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
    from mm_spine.processors.chat import _key

    (image,) = encode(ask(Image.effect_noise((84, 28), 50)), tiny_processor()).images
    pixels, grid = change(image.pixel_values, image.grid_thw)
    assert _key(pixels, grid) != image.key == _key(image.pixel_values, image.grid_thw)
