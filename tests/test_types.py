"""How a question may be written: one image or several, arrays among them, and its kind as a word."""

from __future__ import annotations

import pickle
import zipfile
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from credited_groups import polled
from PIL import Image

from mm_spine.processors.vision import open_image
from mm_spine.types import Answer, AnswerSpec, Question

PICTURE = Image.new("RGB", (4, 2), "red")
SPEC = AnswerSpec("integer")


def test_one_image_stands_for_a_tuple_of_it(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.png", b"bytes")
    member = zipfile.Path(tmp_path / "a.zip", "a.png")
    for image in (PICTURE, Path("a.png"), "a.png", b"bytes", member):
        assert Question("q", image, "?", SPEC).images == (image,)
    assert Question("q", [PICTURE, "a.png"], "?", SPEC).images == (PICTURE, "a.png")
    assert Question("q", None, "?", SPEC).images == Question("q", (), "?", SPEC).images == ()


def test_a_word_stands_for_the_spec_of_that_kind() -> None:
    assert Question("q", (), "?", "yes_no").spec == AnswerSpec("yes_no")
    assert Question("q", (), "?", SPEC).spec is SPEC


def test_an_array_is_the_image_that_its_pixels_are() -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    question = Question("q", pixels, "?", SPEC)
    (image,) = question.images
    assert isinstance(image, Image.Image) and image.size == (4, 2)
    assert (np.asarray(open_image(image, "q")) == pixels).all()
    (cut,) = Question("q", pixels[:, ::2], "?", SPEC).images
    assert (np.asarray(cut) == pixels[:, ::2]).all()
    (grey,) = Question("q", pixels[..., :1], "?", SPEC).images
    assert (np.asarray(open_image(grey, "q"))[..., 0] == pixels[..., 0]).all()


@pytest.mark.parametrize(("kind", "top"), [(np.uint16, 4095), (np.float32, 2.5)])
def test_greys_above_eight_bits_are_scaled_as_those_of_a_file(kind: type, top: float) -> None:
    greys = np.array([[0, top / 2, top]], dtype=kind)
    (image,) = Question("q", greys, "?", SPEC).images
    assert np.asarray(open_image(image, "q"))[0, :, 0].tolist() == pytest.approx([0, 127.5, 255], abs=0.51)


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((2, 2, 5), np.uint8), np.zeros((2, 2, 3), np.float32), np.zeros(4, np.uint8), np.zeros((2, 2), bool)],
    ids=lambda pixels: f"{pixels.shape} {pixels.dtype}",
)
def test_an_array_that_is_no_image_is_refused_by_shape_and_type(pixels: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"^scan: an array of shape .* is no image; give \(H, W\)"):
        Question("scan", pixels, "?", SPEC)


def test_a_question_stays_a_frozen_dataclass() -> None:
    question = Question("q", "a.png", "?", SPEC, benchmark="slake")
    assert pickle.loads(pickle.dumps(question)) == question == Question("q", ("a.png",), "?", "integer", "slake")
    assert replace(question, prompt="!") == Question("q", "a.png", "!", SPEC, "slake")
    with pytest.raises(FrozenInstanceError):
        question.prompt = "!"  # type: ignore[misc]


@pytest.mark.parametrize(("id", "prompt"), [(1, "Sum?"), ("a", Image.new("RGB", (4, 4)))])
def test_an_id_or_a_prompt_that_is_no_text_is_refused_with_the_order(id: Any, prompt: Any) -> None:
    with pytest.raises(TypeError, match=r"is text, not (int|Image).*Question\(id, images, prompt, spec\)"):
        Question(id, "scan.png", prompt, "integer")


def test_a_part_of_a_group_has_all_that_belongs_to_its_rollouts() -> None:
    whole = replace(
        polled(["7", "8", None]),
        parsed=(Answer("7", "7"), Answer("8", "8"), None),
        rewards=torch.tensor([1.0, 0.0, 0.5]),
        advantages=torch.tensor([1.0, -1.0, 0.0]),
        measured=(np.ones(1), None, np.zeros(1)),
        dropped=frozenset({2}),
    )
    part = whole.at([2, 0, 0])
    assert [r.index for r in part.rollouts] == [2, 0, 0] and part.answers == (None, "7", "7")
    assert part.parsed == (None, Answer("7", "7"), Answer("7", "7"))
    assert part.rewards is not None and part.rewards.tolist() == [0.5, 1.0, 1.0]
    assert part.advantages is not None and part.advantages.tolist() == [0.0, 1.0, 1.0]
    assert part.measured is not None and [float(x[0]) for x in part.measured if x is not None] == [0.0, 1.0, 1.0]
    assert (part.vote, part.question, part.dropped) == (whole.vote, whole.question, whole.dropped)
    nothing = whole.at([])
    assert nothing.rewards is not None and (nothing.rollouts, len(nothing.rewards)) == ((), 0)
    assert polled(["7", "8"]).at([1]).rewards is None
