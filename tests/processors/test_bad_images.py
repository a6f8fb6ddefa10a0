"""A bad image or prompt costs its question, with a reason; the run goes on."""

from __future__ import annotations

import io
import os
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from linear import linear
from pictures import JPEG, PNG, SPEC, ask, file_of, frames_of, halves, png, tiff16
from PIL import Image
from PIL import ImageFile as Decoders
from tiny import tiny_image, tiny_policy, tiny_processor

from mm_spine.processors.chat import encode
from mm_spine.processors.vision import ASPECT_LIMIT, BYTE_LIMIT, FORMATS, BadQuestion, open_image
from mm_spine.types import ImageLike, Question


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be enormous."""
    return png(width, height, bytes(64))


BAD: dict[str, tuple[Any, str]] = {
    "truncated jpeg": (JPEG[: len(JPEG) // 2], "truncated; fetch it again"),
    "truncated png": (PNG[: len(PNG) // 2], "truncated; fetch it again"),
    "truncated gif": (file_of(tiny_image(3), "GIF")[:-300], "truncated; fetch it again"),
    "truncated webp": (file_of(tiny_image(3), "WEBP")[:-300], "truncated"),
    "truncated tiff": (file_of(tiny_image(3), "TIFF")[:-300], "truncated"),
    "truncated bmp": (file_of(tiny_image(3), "BMP")[:-300], "truncated"),
    "png header only": (PNG[:30], "truncated"),
    "png name only": (PNG[:8], "truncated: its header"),
    "corrupt png": (PNG[:200] + b"\0" * 50 + PNG[250:], "damaged"),
    "empty": (b"", "the file is empty"),
    "text": (b"The scan is missing.", "none of PNG, JPEG, .*convert it to PNG or JPEG"),
    "web page": (b"\n<!DOCTYPE html><html>404 not found</html>", "a web page; convert"),
    "svg": (b'<?xml version="1.0"?>\n<!-- x -->\n<svg xmlns="x"/>', "an SVG drawing; convert it to PNG or JPEG"),
    "pdf": (b"%PDF-1.7\n", "a PDF; convert it to PNG or JPEG"),
    "dicom": (bytes(128) + b"DICM" + bytes(200), "a DICOM file without a picture; leave it out"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n", "a PostScript file; convert"),
    "eps opened elsewhere": (Image.open(io.BytesIO(file_of(halves(), "EPS"))), "format EPS; convert"),
    "heif": (b"\0\0\0\x18ftypheic" + bytes(20), "damaged or truncated: its header"),
    "photoshop": (b"8BPS\0\x01" + bytes(40), "a Photoshop file; convert"),
    "gzip": (b"\x1f\x8b\x08" + bytes(40), "a compressed archive"),
    "missing": (Path("no/such/file.png"), "no/such/file.png: there is no regular file"),
    "missing string": ("no/such/file.png", "no/such/file.png: there is no regular file"),
    "web address": ("https://example.org/a.png", "a web address; download"),
    "null in name": ("a\0b.png", "there is no regular file"),
    "folder": (Path("."), "it is a folder"),
    "device": (Path("/dev/null"), "there is no regular file"),
    "bomb": (bomb(60_000, 60_000), "3,600,000,000 pixels; allowed are 1 to 64,000,000"),
    "bomb that PIL warns of": (bomb(10_000, 10_000), "10000x10000; allowed are 1 to 64,000,000"),
    "over the limit": (bomb(10_000, 8_000), "10000x8000.*64,000,000"),
    "zero size": (Image.new("RGB", (0, 5)), "0x5"),
    "zero width png": (bomb(0, 10), "0x10|truncated"),
    "wide": (Image.new("RGB", (200, 1)), "200x1; the sides may differ 200-fold"),
    "tall": (Image.new("L", (3, 1000)), "3x1000"),
    "not an image at all": (17, "int: it is not an image"),
    "nothing": (None, "NoneType: it is not an image"),
}


@pytest.mark.parametrize(("image", "words"), BAD.values(), ids=BAD.keys())
def test_a_bad_image_names_its_question_and_why(image: ImageLike, words: str) -> None:
    with pytest.raises(BadQuestion, match=rf"(?s)^q-7: cannot read image .*({words})"):
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


@pytest.mark.parametrize("action", ["error", "default", "ignore"])
@pytest.mark.parametrize("own_limit", [1000, 6 * 10**7, None])
def test_a_bomb_is_refused_whatever_warnings_and_pil_are_set_to(
    action: Any, own_limit: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", own_limit)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter(action)
        with pytest.raises(BadQuestion, match=r"10000x10000|100,000,000 pixels"):
            open_image(bomb(10_000, 10_000), "q-7")
    assert said == []


@pytest.mark.parametrize("file", [JPEG[: len(JPEG) // 2], PNG[: len(PNG) // 2]], ids=["jpeg", "png"])
def test_half_a_picture_is_none_even_where_pil_is_told_to_take_it(file: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Decoders, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(BadQuestion, match="truncated"):
        open_image(file, "q-7")
    assert Decoders.LOAD_TRUNCATED_IMAGES is True


def test_an_empty_file_on_disk(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    with pytest.raises(BadQuestion, match=r"^q-7: cannot read image .*a\.png: the file is empty"):
        open_image(tmp_path / "a.png", "q-7")


def test_a_pipe_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_bytes", lambda self: pytest.fail("read"))
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(BadQuestion, match="no regular file"):
        open_image(tmp_path / "a.png", "q-7")


def test_a_huge_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "a.png").open("wb") as file:
        file.truncate(BYTE_LIMIT + 1)  # a hole: it takes no room
    monkeypatch.setattr(Path, "read_bytes", lambda self: pytest.fail("read"))
    with pytest.raises(BadQuestion, match="more than 268,435,456 bytes; save it smaller"):
        open_image(tmp_path / "a.png", "q-7")


def test_a_cell_that_cannot_be_fetched() -> None:
    class Cell:
        def read_bytes(self) -> bytes:
            raise KeyError("row 3")

    with pytest.raises(BadQuestion, match="^q-7: cannot read image Cell: its bytes cannot be read.*row 3"):
        open_image(Cell(), "q-7")


def seeds() -> dict[str, bytes]:
    """Small valid files of every format, plain, animated and deep."""
    plain = {kind: file_of(tiny_image(3), kind) for kind in FORMATS}
    palette = {
        "PALETTE": file_of(halves().quantize(4), "PNG"),
        "LZW": file_of(halves(), "TIFF", compression="tiff_lzw"),
    }
    moving = {f"{kind} frames": frames_of(kind) for kind in ("GIF", "PNG", "WEBP", "TIFF")}
    return {**plain, **palette, **moving, "deep": tiff16(np.array([[0, 1, 65535]] * 3), ">")}


def damaged(file: bytes, draw: random.Random) -> bytes:
    """Cut, overwritten, doubled or shortened inside."""
    data = bytearray(file)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(min(len(data), draw.choice((64, len(data)))) or 1)
        change = draw.randrange(4)
        if change == 0:
            del data[at:]
        elif change == 1:
            data[at : at + 4] = draw.choice((b"\xff" * 4, bytes(4), draw.randbytes(4)))
        elif change == 2:
            data[at : at + draw.randint(1, 8)] = b""
        else:
            data[at:at] = data[at : at + 16]
    return bytes(data)


@pytest.mark.parametrize("kind", sorted(seeds()))
def test_damaged_files_are_read_or_cost_their_question(kind: str) -> None:
    file, draw = seeds()[kind], random.Random(kind)
    for _ in range(60):
        with linear(kind):
            try:
                assert open_image(damaged(file, draw), "q-7").mode == "RGB"
            except BadQuestion as error:
                assert str(error).startswith("q-7: cannot read image bytes: ")


def test_a_bad_image_among_good_ones_is_recorded_once(caplog: pytest.LogCaptureFixture) -> None:
    policy = tiny_policy()
    bad = ask(tiny_image(0), b"", tiny_image(1))
    with caplog.at_level("WARNING"):
        assert [policy.can_ask(bad) for _ in range(3)] == [False] * 3
    assert list(policy.skipped) == ["q-7"] and policy.skipped["q-7"].startswith("q-7: cannot read image")
    assert len([r for r in caplog.records if "q-7" in r.getMessage()]) == 1
    assert policy.can_ask(ask(tiny_image(0), name="other"))


def test_a_bad_question_is_opened_once() -> None:
    policy, calls = tiny_policy(), []
    bad = ask(b"")
    encode_once = policy._encode
    policy._encode = lambda q: calls.append(q.id) or encode_once(q)  # type: ignore[method-assign]
    for _ in range(2):
        assert not policy.can_ask(bad)
        with pytest.raises(BadQuestion, match="^q-7: cannot read image bytes: the file is empty"):
            policy.prompt(bad)
    assert calls == ["q-7"]


def test_a_good_question_is_asked_beside_a_bad_one_of_its_id(caplog: pytest.LogCaptureFixture) -> None:
    """Two files, one to adapt to and one held out, may number their rows alike."""
    policy = tiny_policy()
    assert [policy.can_ask(q) for q in (ask(b""), ask(tiny_image(0)), ask(b""))] == [False, True, False]
    assert list(policy.skipped) == ["q-7"] and len(caplog.messages) == 1
