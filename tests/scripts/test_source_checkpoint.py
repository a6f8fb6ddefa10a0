"""The source checkpoint of `digits` is trained on printed digits, never on handwriting."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mm_spine.benchmarks import digits
from mm_spine.processors.answers import parse

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts" / "study"))

import source_card
import source_recipe
from habits import habit
from printed_digits import Printed, scan
from source_model import use_fast_attention
from train_source_checkpoint import Teacher

SCRIPTS = Path(source_recipe.__file__).parent


@pytest.fixture(scope="module")
def shipped() -> tuple[Any, Any]:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(digits.MODEL_DIR, dtype=torch.float32)
    return model.eval(), AutoProcessor.from_pretrained(digits.MODEL_DIR)


def test_training_batches_are_drawn_without_handwriting(
    shipped: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def handwriting(**options: Any) -> None:
        raise AssertionError("the handwritten digits were read")

    monkeypatch.setattr("sklearn.datasets.load_digits", handwriting)
    digits._source.cache_clear()
    rng = np.random.default_rng(0)
    printed = Printed(rng.integers(0, 17, (20, 8, 8)), np.arange(20) % 10)
    teacher = Teacher(shipped[1], printed, source_recipe.Config())
    for _ in range(3):
        batch = teacher.batch(4, direct_share=0.5)
        assert len(batch.ids) == len(batch.targets) == 4 and (batch.targets != -100).any(dim=1).all()


def test_a_checkpoint_is_measured_on_the_tune_split_only(monkeypatch: pytest.MonkeyPatch) -> None:
    splits: list[str] = []
    load = digits.load

    def noted(split: str) -> Any:
        splits.append(split)
        return load(split)

    monkeypatch.setattr(digits, "load", noted)
    monkeypatch.setattr(
        source_card, "answer_all", lambda model, processor, questions, n: [[r"\boxed{1}"] * n for _ in questions]
    )
    figures = source_card.measure(None, None, source_recipe.Config(samples=2))
    assert splits == ["tune"]
    assert figures.questions == len(load("tune").questions) and figures.greedy == figures.pass_at_1


def test_targets_show_their_habit_and_end_in_the_answer() -> None:
    for name, kind in digits.KINDS.items():
        gold = kind.answer((3, 8, 5))
        worked, at_once = source_recipe.reasoned(name, (3, 8, 5), "I see", "So"), source_recipe.direct(name, (3, 8, 5))
        assert habit(worked) == "reasoned" and habit(at_once) == "direct"
        for text in (worked, at_once):
            answer = parse(text, kind.spec)
            assert answer is not None and answer.key == gold, text
    assert source_recipe.reasoned("sum", (3, 8, 5), "I see", "So") == r"I see 3 8 5. Sum 11 16. So \boxed{16}."


def test_scan_fills_the_height_and_counts_blocks() -> None:
    ink = torch.zeros(1, 64, 64)
    ink[0, 10:50, 20:30] = 1.0  # 40 high, 10 wide: becomes 32 high, 8 wide, in the middle
    counts = scan(ink)[0]
    assert counts[:, 3:5].tolist() == [[16, 16]] * 8
    assert counts.sum() == 16 * 16


def test_batched_attention_of_the_tower_equals_its_loop(shipped: tuple[Any, Any]) -> None:
    model, processor = shipped
    images = [
        digits.render(np.random.default_rng(i), np.random.default_rng(i).integers(0, 17, (3, 8, 8))) for i in (0, 1)
    ]
    features = processor.image_processor(images=images, return_tensors="pt")
    inputs = {"hidden_states": features["pixel_values"], "grid_thw": features["image_grid_thw"]}
    config = model.model.visual.config
    before = config._attn_implementation
    with torch.no_grad():
        looped = model.model.visual(**inputs).pooler_output
        use_fast_attention(model)
        batched = model.model.visual(**inputs).pooler_output
        model.set_attn_implementation(before)
    assert torch.allclose(looped, batched, atol=1e-5) and not torch.equal(batched[:3], batched[3:])


@pytest.mark.slow
def test_the_processor_is_built_in_a_process_of_its_own() -> None:
    """As the script does, which imports nothing that has mended torchvision before."""
    code = (
        "import source_model, source_recipe; "
        "print(type(source_model.build_processor(source_recipe.RECIPES['direct-heavy'])).__name__)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(SCRIPTS), str(SCRIPTS.parents[1])))}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert (found.returncode, found.stdout.split()) == (0, ["Qwen2_5_VLProcessor"]), found.stderr
