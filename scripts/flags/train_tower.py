r"""Train the vision tower of `flags` to stand for the name of the country whose flag it sees.

    python scripts/flags/train_tower.py --language DIR --output DIR [--steps 3000] [--seed 0]

The image tokens of a flag are to become the input embeddings of the tokens of the country's name, filled with spaces,
which a frozen language model reads as if the name stood there. The language model itself takes no part: only its table
of embeddings is read. The loss is the cross-entropy over all countries by squared distance, and that distance; in the
last --refine steps it is the distance alone, since the cross-entropy goes on past a name, away from the others. Every
picture is drawn plainly, with small shifts and scales (`flag_pictures.plain`); the camera's shift is never trained on.

All draws are seeded, and `--output` holds a checkpoint every --save steps: the same command goes on from there. The
finished tower, config.json and model.safetensors in fp16, is in `--output` when the last step is done.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from tower import TOKENS, VISION, build_tower, name_tokens, patches

from mm_spine.benchmarks import flag_pictures, flags
from mm_spine.benchmarks.countries import Country

log = logging.getLogger("train_tower")

SHARPNESS = 10.0
"""What a squared distance, in units of the mean one between two countries, counts in the cross-entropy."""


def read_embeddings(language: Path) -> Tensor:
    """Return the input embeddings of a language model's folder, (V, H) in fp32."""
    with safe_open(language / "model.safetensors", framework="pt") as file:
        return file.get_tensor("model.embed_tokens.weight").float()


def name_embeddings(language: Path, shown: tuple[Country, ...]) -> Tensor:
    """Return what the image tokens of each country are to become, (C, TOKENS, H)."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(language)
    ids = torch.tensor([name_tokens(tokenizer, country.in_sentence) for country in shown])
    return read_embeddings(language)[ids]


def distances(image_BTH: Tensor, names_CTH: Tensor) -> Tensor:
    """Return squared distances of images and names, (B, C), in units of the mean one between two names."""
    image, names = image_BTH.float().flatten(1), names_CTH.flatten(1)
    unit = 2 * names.var(dim=0, correction=0).sum()
    return (image.square().sum(1)[:, None] + names.square().sum(1) - 2 * image @ names.T) / unit


def picture_loss(
    image_BTH: Tensor, names_CTH: Tensor, shown_B: Tensor, told_apart: bool = True
) -> tuple[Tensor, float]:
    """Return the loss and the share of pictures that are nearest to the name of their own country.

    The loss is the distance to that name, and, if they are to be `told_apart`, the cross-entropy over all.
    """
    far = distances(image_BTH, names_CTH)
    own = far.gather(1, shown_B[:, None]).mean()
    right = (far.argmin(1) == shown_B).float().mean().item()
    return (own + F.cross_entropy(-SHARPNESS * far, shown_B) if told_apart else own), right


class Trainer:
    """A tower, its optimiser, and the number of steps done; `step` is the only thing that changes them."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.done = options, 0
        self.shown = flags.SHOWN
        self.names_CTH = name_embeddings(options.language, self.shown)
        self.tower = build_tower(self.names_CTH.shape[-1], options.seed)
        self.optimiser = torch.optim.AdamW(self.tower.parameters(), lr=options.lr, weight_decay=0.01)
        self.checkpoint = options.output / "checkpoint.pt"

    def resume(self) -> None:
        """Go on from the checkpoint, where there is one. Raises ValueError for one of other options."""
        if not self.checkpoint.exists():
            return
        saved = torch.load(self.checkpoint, weights_only=True)
        if saved["options"] != self.identity():
            raise ValueError(f"{self.checkpoint} is of {saved['options']}; give the same options, or another --output")
        self.tower.load_state_dict(saved["tower"])
        self.optimiser.load_state_dict(saved["optimiser"])
        self.done = saved["done"]
        log.info("going on after step %d", self.done)

    def identity(self) -> dict[str, Any]:
        return {name: getattr(self.options, name) for name in ("seed", "steps", "refine", "batch", "lr", "warmup")}

    @property
    def last(self) -> int:
        """The number of all steps."""
        return int(self.options.steps + self.options.refine)

    def rate(self) -> float:
        """Return the learning rate of the next step: up, down to 0, and for refinement from a third down to 0."""
        options = self.options
        if self.done >= options.steps:
            return float(options.lr / 3 * (self.last - self.done) / options.refine)
        up, down = (self.done + 1) / options.warmup, (options.steps - self.done) / (options.steps - options.warmup)
        return float(options.lr * min(up, down))

    def save(self) -> None:
        state = {"tower": self.tower.state_dict(), "optimiser": self.optimiser.state_dict()}
        partial = self.checkpoint.with_suffix(".part")
        torch.save({**state, "done": self.done, "options": self.identity()}, partial)
        os.replace(partial, self.checkpoint)

    def step(self) -> tuple[float, float]:
        """Take one step; return its loss and the share of its pictures that were recognised."""
        options = self.options
        rng = np.random.default_rng([options.seed, self.done])
        shown = rng.integers(0, len(self.shown), size=options.batch)
        pictures = [flag_pictures.plain(rng, self.shown[i].code) for i in shown]
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate()
        told_apart = self.done < options.steps
        loss, right = picture_loss(self.look(pictures), self.names_CTH, torch.from_numpy(shown), told_apart)
        self.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.tower.parameters(), 1.0, error_if_nonfinite=True)
        self.optimiser.step()
        self.done += 1
        return loss.item(), right

    def look(self, pictures: list[Any]) -> Tensor:
        """Return the image tokens of B pictures, (B, TOKENS, H)."""
        pixels, grids = patches(pictures)
        with torch.autocast("cpu", torch.bfloat16):
            return self.tower(pixels, grid_thw=grids).pooler_output.unflatten(0, (len(pictures), TOKENS))

    @torch.no_grad()
    def recognised(self, strength: float | None, draws: int = 2) -> float:
        """Return the share of pictures of `tune`'s countries nearest to their own name; None: drawn plainly."""
        right = []
        for draw in range(draws):
            rng = np.random.default_rng([self.options.seed, 1, draw])
            codes = flags.CODES["tune"]
            pictures = [
                flag_pictures.plain(rng, code) if strength is None else flag_pictures.photograph(rng, code, strength)
                for code in codes
            ]
            at = torch.tensor([[country.code for country in self.shown].index(code) for code in codes])
            right.append(picture_loss(self.look(pictures), self.names_CTH, at)[1])
        return float(np.mean(right))

    def write(self) -> None:
        """Write the finished tower: config.json, and its weights in fp16."""
        state = {name: value.half().contiguous() for name, value in self.tower.state_dict().items()}
        save_file(state, self.options.output / "model.safetensors")
        (self.options.output / "config.json").write_text(json.dumps(VISION, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--language", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--refine", type=int, default=400)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--save", type=int, default=100)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    options.output.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(options)
    trainer.resume()
    started, before = time.perf_counter(), trainer.done
    while trainer.done < trainer.last:
        loss, right = trainer.step()
        if trainer.done % 20 == 0:
            each = (time.perf_counter() - started) / (trainer.done - before)
            log.info("step %d loss %.3f recognised %.3f (%.2f s a step)", trainer.done, loss, right, each)
        if trainer.done % options.save == 0 or trainer.done == trainer.last:
            trainer.save()
            seen = [trainer.recognised(strength) for strength in (None, flags.SHIFT)]
            log.info("tune: plain %.3f, with the shift %.3f", *seen)
    trainer.write()


if __name__ == "__main__":
    main()
