"""Small real runs: a random model biased towards digits, so that votes are won, and a folder of questions for it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tiny import tiny_image, tiny_model, tiny_processor

from mm_spine.config import ModelConfig, RunConfig
from mm_spine.methods.table import configure
from mm_spine.policy.model import Policy
from mm_spine.sampling import Sampler
from mm_spine.types import Question, Rollout

FAVOURED = ("1", "2", "Ġ", "<|im_end|>")
# Most of its responses reach the limit of 6 tokens, and are to vote all the same.
BASE = {
    # Its prompts are to leave room for an answer within the model's few positions.
    "prompt": "verbatim",
    "method": {"name": "spine", "share": 0.5},
    "sampling": {"votes": {"max": 4, "cut_off": "count"}, "train_rollouts": 4, "max_new_tokens": 6},
    "optim": {"steps": 3, "questions_per_step": 4, "lr": 0.0005, "schedule": "linear"},
    "evaluation": {"samples": 2, "max_new_tokens": 6},
    "threads": 1,
}


def digit_model(seed: int = 0, kind: str = "qwen2_5_vl") -> Any:
    """`tiny_model` whose first embedding column makes 1, 2, a space and the end of the turn likely."""
    model = tiny_model(seed, kind=kind)
    ids = tiny_processor().tokenizer.convert_tokens_to_ids(list(FAVOURED))
    with torch.no_grad():
        weight = model.get_input_embeddings().weight
        weight[:, 0] = 2.0
        weight[ids, 0] = 5.0
        model.model.language_model.norm.weight[0] = 2.0
    return model


def digit_policy(config: ModelConfig | None = None, seed: int = 0, model_seed: int = 0) -> Policy:
    """A policy of its own around `digit_model`."""
    with torch.random.fork_rng(devices=[]):
        return Policy(digit_model(model_seed), tiny_processor(), config, seed)


def write_model(folder: Path) -> Path:
    """`digit_model` and the shipped processor as a model folder."""
    digit_model().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


def golds_of(digit: str) -> list[str]:
    """The gold answers that `digit` stands for."""
    return [digit * length for length in range(1, 7)]


def write_data(folder: Path, golds: str = "121212", held_out: str = "12") -> Path:
    """A question with an image for each digit of `golds`, right however often repeated; held-out ones likewise."""
    folder.mkdir(parents=True)
    for split, answers in (("questions", golds), ("held_out", held_out)):
        rows = []
        for i, gold in enumerate(answers):
            image = f"{split}{i}.png"
            tiny_image(i).save(folder / image)
            row = {"image": image, "prompt": f"Which digit is number {i}?", "kind": "integer"}
            rows.append({**row, "answer": golds_of(gold)})
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def small_config(*layers: Mapping[str, Any]) -> RunConfig:
    """`BASE` and what differs from it."""
    return configure(BASE, *layers)


class Silent:
    """A sampler with its entropies withheld, as a backend that has none."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler, self.sync = sampler, sampler.sync

    def sample(self, questions: Sequence[Question], n: int, **how: Any) -> list[list[Rollout]]:
        return [[replace(r, entropy=None) for r in group] for group in self.sampler.sample(questions, n, **how)]
