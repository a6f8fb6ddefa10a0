"""The embedded benchmark: real handwriting, disjoint splits, true golds; and the checkpoint shipped beside it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL.Image import Image
from sklearn.datasets import load_digits

from mm_spine.benchmarks import digits
from mm_spine.processors.answers import parse
from mm_spine.types import Question

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def targets() -> np.ndarray:
    classes: np.ndarray = load_digits().target
    return classes


def rows(split: str) -> Counter[int]:
    """How many composites of `split` show each image."""
    return Counter(row for shown in {asked.digits for asked in digits.plan(split)} for row in shown)


def shown_by(question: Question) -> Image:
    (image,) = question.images
    assert isinstance(image, Image)
    return image


def test_no_image_stands_in_two_splits() -> None:
    used = {split: set(rows(split)) for split in digits.SPLITS}
    assert {split: len(images) for split, images in used.items()} == {"tune": 720, "adapt": 80, "held_out": 640}
    assert len(set().union(*used.values())) == 720 + 80 + 640
    assert max(set().union(*used.values())) < 1797


def test_no_pixels_stand_in_two_splits() -> None:
    pixels = load_digits().images.astype(np.uint8)
    seen = {split: {pixels[row].tobytes() for row in rows(split)} for split in digits.SPLITS}
    assert not seen["adapt"] & seen["held_out"] and not seen["tune"] & (seen["adapt"] | seen["held_out"])


def test_held_out_shows_every_image_once() -> None:
    asked = digits.plan("held_out")
    assert len(asked) == 256
    assert set(Counter(row for a in asked for row in a.digits).values()) == {1}


def test_adapt_asks_eight_questions_about_every_image() -> None:
    asked = digits.plan("adapt")
    assert len(asked) == 256 and set(rows("adapt").values()) == {2}
    assert set(Counter(row for a in asked for row in a.digits).values()) == {8}
    assert len({(a.digits, a.kind) for a in asked}) == 256  # four different kinds about each composite


def test_every_class_is_shown_equally_often(targets: np.ndarray) -> None:
    assert set(Counter(targets[list(rows("held_out"))].tolist()).values()) == {64}
    assert set(Counter(targets[list(rows("adapt"))].tolist()).values()) == {8}


@pytest.mark.parametrize("split", digits.SPLITS)
def test_the_key_is_what_the_true_digits_give(split: str, targets: np.ndarray) -> None:
    labelled = digits.load(split)
    checked: Counter[str] = Counter()
    for asked, question in zip(digits.plan(split), labelled.questions, strict=True):
        shown = targets[list(asked.digits)]
        by_hand = {
            "sum": shown.sum(),
            "largest": np.sort(shown)[-1],
            "range": np.ptp(shown),
            "even": np.count_nonzero(shown % 2 == 0),
            "over": "yes" if shown.sum() > 10 else "no",
        }
        if asked.kind in by_hand:
            assert labelled.key[question.id] == (str(by_hand[asked.kind]),), question.id
            checked[asked.kind] += 1
    assert len(checked) == 5 and sum(checked.values()) > 150


def test_questions_carry_what_the_loop_needs_and_no_label() -> None:
    labelled = digits.load("adapt")
    assert [q.id for q in labelled.questions[:2]] == ["digits/adapt/0000", "digits/adapt/0001"]
    assert set(labelled.key) == set(labelled.tags) == {q.id for q in labelled.questions}
    for question in labelled.questions:
        image = shown_by(question)
        kind = labelled.tags[question.id]["kind"]
        assert image.size in ((56, 28), (84, 28)) and image.mode == "RGB"
        assert question.prompt in digits.KINDS[kind].phrasings and question.benchmark == "digits"
        assert question.spec.kind == ("yes_no" if kind == "over" else "integer")
        assert parse(rf"The answer is \boxed{{{labelled.key[question.id][0]}}}.", question.spec) is not None


def test_loading_twice_gives_the_same_and_leaves_random_state_alone() -> None:
    np.random.seed(7)
    torch.manual_seed(7)
    before = repr(np.random.get_state()), torch.get_rng_state().tolist()
    one, two = digits.load("adapt"), digits.load("adapt")
    assert (repr(np.random.get_state()), torch.get_rng_state().tolist()) == before
    assert one.key == two.key and one.tags == two.tags
    for a, b in zip(one.questions, two.questions, strict=True):
        assert (a.id, a.prompt, a.spec) == (b.id, b.prompt, b.spec)
        assert shown_by(a).tobytes() == shown_by(b).tobytes()


def test_an_unknown_split_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'test'; take one of tune, adapt, held_out"):
        digits.load("test")


def test_render_puts_one_digit_in_each_cell() -> None:
    full, empty = np.full((8, 8), 16), np.zeros((8, 8))
    image = np.asarray(digits.render(np.random.default_rng(0), [full, empty, full]))[..., 0]
    assert image.shape == (28, 84)
    inked = [(255 - image[:, cell : cell + 28]).sum() / 255 for cell in (0, 28, 56)]
    assert inked == [24 * 24, 0, 24 * 24]  # three pixels for each of 8, wherever the jitter put them


def test_the_checkpoint_is_small_and_holds_no_pickle() -> None:
    files = [path for path in digits.MODEL_DIR.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 8_000_000
    assert {"README.md", "config.json", "generation_config.json", "model.safetensors"} <= {path.name for path in files}
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".jinja", ".md"}


@pytest.fixture(scope="module")
def shipped() -> tuple[Any, Any]:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(digits.MODEL_DIR, dtype=torch.float32)
    return model.eval(), AutoProcessor.from_pretrained(digits.MODEL_DIR)


def test_the_checkpoint_answers_in_a_box(shipped: tuple[Any, Any]) -> None:
    model, processor = shipped
    assert type(model).__name__ == "Qwen2_5_VLForConditionalGeneration"
    questions = digits.load("tune").questions[:16]
    parsed = [parse(_ask(model, processor, q), q.spec) for q in questions]
    assert sum(answer is not None for answer in parsed) >= 15


def _ask(model: Any, processor: Any, question: Question) -> str:
    content = [{"type": "image"}, {"type": "text", "text": question.prompt}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    features = processor(text=[text], images=list(question.images), return_tensors="pt")
    with torch.no_grad():
        output = model.generate(**features)
    return str(processor.decode(output[0, features["input_ids"].shape[1] :], skip_special_tokens=True))


def test_one_image_token_for_each_digit(shipped: tuple[Any, Any]) -> None:
    _, processor = shipped
    image = digits.render(np.random.default_rng(0), [np.zeros((8, 8))] * 3)
    features = processor.image_processor(images=[image], return_tensors="pt")
    assert features["image_grid_thw"].tolist() == [[1, 2, 6]]  # 14-pixel patches of an image that is not resized


def test_prompts_and_answers_are_short(shipped: tuple[Any, Any]) -> None:
    tokenizer = shipped[1].tokenizer
    assert len(tokenizer) <= 512 and tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token == "<|endoftext|>"
    assert max(len(tokenizer(p)["input_ids"]) for kind in digits.KINDS.values() for p in kind.phrasings) <= 15
    assert len(tokenizer(r"The answer is \boxed{12}.")["input_ids"]) <= 10
    assert all(len(tokenizer(str(digit))["input_ids"]) == 1 for digit in range(10))
