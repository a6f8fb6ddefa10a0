r"""Build the tiny Qwen2.5-VL that `digits` starts from, out of PRINTED digits alone.

    python scripts/study/train_source_checkpoint.py --output DIR [--seed 0] [--recipe two-habits|direct-heavy|clean]

Three stages, about ten minutes on two CPU cores: the tower learns to read printed digits under an auxiliary
head; the language model learns to reason step by step about them; a few last steps add a second habit, answering
directly, which stays undertrained on purpose. No handwritten pixel and no handwritten label is trained on. The
finished checkpoint is measured on the `tune` split of `digits`, where labels may be looked at, and nowhere else.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from printed_digits import Printed, print_digits
from source_card import Figures, measure, write_card
from source_model import build_model, build_processor, use_fast_attention
from source_recipe import RECIPES, Config, Stage, direct, reasoned
from torch import Tensor, nn
from torch.nn import functional as F

from mm_spine.benchmarks import digits

log = logging.getLogger("train_source_checkpoint")


class Batch(NamedTuple):
    """B composites of k digits: patches (4kB, 1176), grids (B, 3), tokens and targets (B, L), -100 not a target."""

    patches: Tensor
    grids: Tensor
    ids: Tensor
    targets: Tensor


class Teacher:
    """Draws batches of printed composites; every draw comes from its own generator."""

    def __init__(self, processor: Any, printed: Printed, config: Config) -> None:
        self.processor, self.printed, self.config = processor, printed, config
        self.rng = np.random.default_rng(config.seed)
        self.prefix, self.suffix = (self.tokens(part) for part in _around(processor))
        self.pad, self.end = self.tokens("<|image_pad|>")[0], self.tokens("<|im_end|>")[0]
        self._known: dict[str, list[int]] = {}

    def tokens(self, text: str) -> list[int]:
        return self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]

    def composites(self, n: int, cells: int) -> tuple[Tensor, Tensor, np.ndarray]:
        """Draw `n` images of `cells` printed digits; return patches, grids, and the digits (n, cells)."""
        rows = self.rng.integers(0, len(self.printed.label), size=(n, cells))
        images = [digits.render(self.rng, self.printed.ink[row]) for row in rows]
        features = self.processor.image_processor(images=images, return_tensors="pt")
        return features["pixel_values"], features["image_grid_thw"], self.printed.label[rows]

    def batch(self, n: int, direct_share: float) -> Batch:
        """Draw `n` questions about equally many digits, so that targets of one habit have nearly equal lengths."""
        cells = int(self.rng.integers(2, 4))
        patches, grids, shown = self.composites(n, cells)
        rows, targets = zip(*(self._sequence(row.tolist(), direct_share) for row in shown), strict=True)
        length = max(map(len, rows))
        ids = torch.tensor([row + [self.end] * (length - len(row)) for row in rows])
        labels = torch.tensor([row + [-100] * (length - len(row)) for row in targets])
        return Batch(patches, grids, ids, labels)

    def _sequence(self, shown: list[int], direct_share: float) -> tuple[list[int], list[int]]:
        kind = str(self.rng.choice(list(digits.KINDS)))
        question = str(self.rng.choice(digits.KINDS[kind].phrasings))
        opener, closer = str(self.rng.choice(self.config.openers)), str(self.rng.choice(self.config.closers))
        at_once = self.rng.random() < direct_share
        text = direct(kind, shown) if at_once else reasoned(kind, shown, opener, closer)
        prompt = self.prefix + self._remembered(question) + self.suffix
        at = prompt.index(self.pad)
        prompt = prompt[:at] + [self.pad] * len(shown) + prompt[at + 1 :]
        answer = [*self.tokens(text), self.end]
        return prompt + answer, [-100] * len(prompt) + answer

    def _remembered(self, text: str) -> list[int]:
        return self._known.setdefault(text, self.tokens(text))


def _around(processor: Any) -> tuple[str, str]:
    """Return what the chat template writes before and after the question."""
    content = [{"type": "image"}, {"type": "text", "text": "QUESTION"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    before, after = text.split("QUESTION")
    return before, after


def train_vision(model: Any, teacher: Teacher, stage: Stage) -> float:
    """Teach the tower to read one digit per image token under a linear head, which is then dropped."""
    head = nn.Linear(model.config.text_config.hidden_size, 10)
    parameters = [*model.model.visual.parameters(), *head.parameters()]

    def loss() -> tuple[Tensor, float]:
        patches, grids, shown = teacher.composites(stage.batch, int(teacher.rng.integers(2, 4)))
        label = torch.tensor(shown).flatten()
        logits = head(model.model.visual(patches, grid_thw=grids).pooler_output).float()
        return F.cross_entropy(logits, label), (logits.argmax(-1) == label).float().mean().item()

    return _train("vision", parameters, stage, loss)


def train_language(name: str, model: Any, teacher: Teacher, stage: Stage) -> float:
    """Teach questions and targets, tower included; the loss is over response tokens."""

    def loss() -> tuple[Tensor, float]:
        batch = teacher.batch(stage.batch, stage.direct)
        output = model(
            input_ids=batch.ids, pixel_values=batch.patches, image_grid_thw=batch.grids,
            mm_token_type_ids=(batch.ids == teacher.pad).int(), use_cache=False,
        )  # fmt: skip
        logits, target = output.logits[:, :-1].float().flatten(0, 1), batch.targets[:, 1:].flatten()
        asked = target != -100
        logits, target = logits[asked], target[asked]
        return F.cross_entropy(logits, target), (logits.argmax(-1) == target).float().mean().item()

    return _train(name, list(model.parameters()), stage, loss)


def _train(
    name: str, parameters: list[nn.Parameter], stage: Stage, loss_of_batch: Callable[[], tuple[Tensor, float]]
) -> float:
    """Train with AdamW, linear warm-up and decay. Return the mean accuracy over the last tenth of the steps."""
    optimiser = torch.optim.AdamW(parameters, lr=stage.lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda i: min((i + 1) / stage.warmup, (stage.steps - i) / stage.steps)
    )
    accuracies: list[float] = []
    began = time.monotonic()
    for step in range(stage.steps):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, accuracy = loss_of_batch()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        accuracies.append(accuracy)
        if (step + 1) % max(1, stage.steps // 10) == 0:
            rate = (time.monotonic() - began) / (step + 1)
            log.info("%s %d/%d: loss %.3f, accuracy %.3f, %.2f s a step", name, step + 1, stage.steps, loss.item(),
                     float(np.mean(accuracies[-stage.steps // 10 :])), rate)  # fmt: skip
    return float(np.mean(accuracies[-max(1, stage.steps // 10) :]))


def build(output: Path, config: Config) -> Figures:
    """Train, save in the ordinary Hugging Face layout (bfloat16), load that back, measure it, write the card."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    began = time.monotonic()
    processor = build_processor(config)
    model = build_model(processor, config.seed)
    use_fast_attention(model)
    teacher = Teacher(processor, print_digits(config), config)
    stages = {"vision": train_vision(model, teacher, config.vision)}
    model.model.visual.requires_grad_(False)
    for name, stage in (("reasoning", config.reasoning), ("habits", config.habits)):
        stages[name] = train_language(name, model, teacher, stage)
        log.info("%s: %.3f of the response tokens right", name, stages[name])
    model.to(torch.bfloat16).save_pretrained(output)
    processor.save_pretrained(output)
    saved = AutoModelForImageTextToText.from_pretrained(output, dtype=torch.float32).eval()
    figures = measure(saved, AutoProcessor.from_pretrained(output), config)
    write_card(output, config, stages, figures, time.monotonic() - began)
    log.info("%s", figures)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, required=True, help="folder for the checkpoint and its card")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recipe", choices=list(RECIPES), default="two-habits")
    parser.add_argument("--threads", type=int, default=2, help="another count gives slightly different weights")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)
    options.output.mkdir(parents=True, exist_ok=True)
    build(options.output, replace(RECIPES[options.recipe], seed=options.seed))


if __name__ == "__main__":
    main()
