"""How far training in bfloat16 follows training in float32, per family, full and LoRA, merged and unmerged.

    python scripts/bench/bf16_drift.py [--steps 100] [--kinds qwen2 ...] [--trains full lora] [--json FILE] [--noise]

Tiny random models of the tests (2 or 3 layers), which favour a few tokens so that votes are won. Every run of a cell
starts from the same weights, rounded to bfloat16. `other draws` is float32 with another seed: by how much
two exact runs differ. Policies are compared on responses drawn from the start.

`--noise` instead measures by how much the entropies of sampler and trainer differ at the start, in units of
r = 2^-8 sqrt((2 layers + 1) / 3); the zero width of the band in bfloat16 (`training/loss.py`) is 8 r.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

import tiny
from families import KINDS, ask
from small import small_config
from tiny import tiny_model, tiny_processor

from mm_spine.adapt import adapt
from mm_spine.config import LoraConfig, ModelConfig, RunConfig
from mm_spine.policy.distribution import Distribution, logits_of
from mm_spine.policy.model import Policy
from mm_spine.policy.packed import Branches, PackedBatch, pack
from mm_spine.policy.scoring import score_responses
from mm_spine.sampling.hf import HFSampler
from mm_spine.types import Question

TRAINS = {"full": ModelConfig(), "lora": ModelConfig(train="lora", lora=LoraConfig(rank=4, alpha=8))}
FAVOURED = ("1", "2", "Ġ", "<|im_end|>")
DEPTHS = (2, 8, 36)
TOKENS = 8
Responses = list[list[tuple[int, ...]]]


class Run(NamedTuple):
    """A trained policy, its trainable weights in fp32 at the start and at the end, and the seconds it took."""

    policy: Policy
    start: dict[str, Tensor]
    end: dict[str, Tensor]
    seconds: float


def model_of(kind: str) -> Any:
    """Return a random model whose weights are bfloat16's, and which makes digits and the end of the turn likely."""
    model = tiny_model(0, True, kind)
    ids = tiny.tiny_processor("qwen2").convert_tokens_to_ids(list(FAVOURED))
    with torch.no_grad():
        table = model.get_input_embeddings().weight
        table[:, 0] = 2.0
        table[ids, 0] = 5.0
        norms = [module for name, module in model.named_modules() if name.endswith("norm") and "visual" not in name]
        norms[-1].weight[0] = 2.0
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    return model


def policy_of(kind: str, dtype: torch.dtype, trains: ModelConfig) -> Policy:
    with torch.random.fork_rng(devices=[]):
        return Policy(model_of(kind).to(dtype), tiny_processor(kind), trains)


def questions_of(kind: str) -> list[Question]:
    return ask(kind, (1, 1, 0, 2) if kind.endswith("vl") else (0, 0, 0, 0))


def config_of(steps: int, seed: int) -> RunConfig:
    return small_config(
        {
            "seed": seed,
            "sampling": {"max_new_tokens": TOKENS},
            "optim": {"steps": steps, "questions_per_step": 2},
            # Parity is no question here, and must stop no run.
            "engine": {"parity_limit": 1.0},
        }
    )


def train(kind: str, trains: ModelConfig, dtype: torch.dtype, steps: int, seed: int = 0) -> Run:
    policy = policy_of(kind, dtype, trains)
    start = {name: weight.float() for name, weight in policy.weights().items()}
    began = time.perf_counter()
    adapt(questions_of(kind), policy, config=config_of(steps, seed))
    seconds = time.perf_counter() - began
    return Run(policy, start, {name: weight.float() for name, weight in policy.weights().items()}, seconds)


def responses_of(policy: Policy, questions: Sequence[Question], each: int) -> Responses:
    """Draw the responses on which policies are compared."""
    sampler = HFSampler(policy, config_of(1, 0).sampling)
    groups = sampler.sample(questions, each, step=0, purpose="compare")
    return [[rollout.token_ids for rollout in group] for group in groups]


def batch_of(policy: Policy, questions: Sequence[Question], responses: Responses) -> PackedBatch:
    rows = []
    for question, texts in zip(questions, responses, strict=True):
        leaves = [torch.tensor(tokens) for tokens in texts]
        rows.append(Branches(policy.prompt(question), leaves, [torch.ones(len(x), dtype=torch.bool) for x in leaves]))
    return pack(rows)


@torch.no_grad()
def log_probs_of(policy: Policy, questions: Sequence[Question], responses: Responses) -> Tensor:
    """Return the log-probs (S, V) of all distinct predictions of the responses."""
    hidden_SD = policy.text.trunk(batch_of(policy, questions, responses))
    return Distribution(1.0, policy.banned).log_probs(logits_of(hidden_SD, policy.text.head.weight)).clamp(min=-1e4)


def merged(policy: Policy) -> Policy:
    """Return the policy as it is saved and loaded again, its adapters merged into the weights."""
    dtype = str(policy.text.head.weight.dtype).removeprefix("torch.")
    with tempfile.TemporaryDirectory() as folder:
        policy.save(Path(folder))
        return Policy.load(folder, ModelConfig(dtype=dtype))  # type: ignore[arg-type]


def kl(left_SV: Tensor, right_SV: Tensor) -> float:
    """Return the mean of KL(left || right), nats a token."""
    return float((left_SV.exp() * (left_SV - right_SV)).sum(-1).double().mean())


def agreement(left_SV: Tensor, right_SV: Tensor) -> float:
    """Return the share of places at which both find the same token likeliest."""
    return float((left_SV.argmax(-1) == right_SV.argmax(-1)).double().mean())


def flat(weights: dict[str, Tensor]) -> Tensor:
    return torch.cat([weights[name].flatten().double() for name in sorted(weights)])


def cell(kind: str, name: str, steps: int) -> dict[str, Any]:
    """Return the figures of one family and one way of training."""
    trains, questions = TRAINS[name], questions_of(kind)
    first = policy_of(kind, torch.float32, trains)
    responses = responses_of(first, questions, 64)
    at_start = log_probs_of(first, questions, responses)
    half_start = log_probs_of(policy_of(kind, torch.bfloat16, trains), questions, responses)
    whole, half = (train(kind, trains, dtype, steps) for dtype in (torch.float32, torch.bfloat16))
    other = train(kind, trains, torch.float32, steps, seed=1)
    runs = {"whole": whole, "half": half, "other": other}
    ends = {key: log_probs_of(run.policy, questions, responses) for key, run in runs.items()}
    moved = float((flat(whole.end) - flat(whole.start)).norm())
    found = {
        "kind": kind,
        "trains": name,
        "steps": steps,
        "predictions": len(at_start),
        "weights_over_moved": float((flat(half.end) - flat(whole.end)).norm()) / moved,
        "other_weights_over_moved": float((flat(other.end) - flat(whole.end)).norm()) / moved,
        "moved_half_over_whole": float((flat(half.end) - flat(half.start)).norm()) / moved,
        "changed_weights": float((flat(half.end) != flat(half.start)).double().mean()),
        "kl_learnt": kl(ends["whole"], at_start),
        "kl_forward": kl(at_start, half_start),
        "kl": kl(ends["whole"], ends["half"]),
        "kl_other": kl(ends["whole"], ends["other"]),
        "agree": agreement(ends["whole"], ends["half"]),
        "agree_other": agreement(ends["whole"], ends["other"]),
        "agree_start": agreement(ends["whole"], at_start),
        "seconds": [round(run.seconds, 1) for run in (whole, half, other)],
    }
    if name == "lora":
        one, two = (log_probs_of(merged(run.policy), questions, responses) for run in (whole, half))
        found |= {
            "kl_merged": kl(one, two),
            "agree_merged": agreement(one, two),
            "kl_by_merging_whole": kl(ends["whole"], one),
            "kl_by_merging_half": kl(ends["half"], two),
            "agree_by_merging_half": agreement(ends["half"], two),
        }
    return found


def table(cells: Sequence[dict[str, Any]]) -> str:
    """Return the figures as two tables: all cells, and what merging LoRA changes."""
    lines = [
        "| family | trained | distance / moved | other draws | KL learnt | KL of bf16 | other draws | same token | "
        "other draws | start |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for c in cells:
        lines.append(
            f"| {c['kind']} | {c['trains']} | {c['weights_over_moved']:.2f} | {c['other_weights_over_moved']:.2f} | "
            f"{c['kl_learnt']:.3g} | {c['kl']:.2g} | {c['kl_other']:.2g} | {c['agree']:.1%} | {c['agree_other']:.1%} | "
            f"{c['agree_start']:.1%} |"
        )
    lora = [c for c in cells if "kl_merged" in c]
    if lora:
        lines += [
            "",
            "| family, LoRA | KL of bf16, unmerged | merged | KL by merging, fp32 | bf16 | same token, bf16 |",
            "|---|---|---|---|---|---|",
        ]
    for c in lora:
        lines.append(
            f"| {c['kind']} | {c['kl']:.2g} | {c['kl_merged']:.2g} | {c['kl_by_merging_whole']:.2g} | "
            f"{c['kl_by_merging_half']:.2g} | {c['agree_by_merging_half']:.1%} |"
        )
    return "\n".join(lines)


def noise(kind: str, layers: int | None) -> dict[str, Any]:
    """Return by how much the entropies of a random model differ between sampler and trainer, in r and in nats."""
    sizes = dict(tiny.SIZES)
    try:
        if layers is not None:
            tiny.SIZES["num_hidden_layers"] = layers
        with torch.random.fork_rng(devices=[]):
            policy = Policy(tiny_model(0, True, kind).bfloat16(), tiny_processor(kind))
    finally:
        tiny.SIZES.update(sizes)
    questions, decoding = questions_of(kind), small_config({"sampling": {"max_new_tokens": 24}}).sampling
    groups = HFSampler(policy, decoding).sample(questions, 16, step=0, purpose="compare")
    asked = [(q, [rollout.token_ids for rollout in group]) for q, group in zip(questions, groups, strict=True)]
    scores = score_responses(policy, asked, Distribution(decoding.temperature, policy.banned))
    there = np.concatenate([rollout.entropy for group in groups for rollout in group if rollout.entropy is not None])
    gap = np.abs(there - np.concatenate([score.entropy for group in scores for score in group]))
    depth = len(policy.text.language_model.layers)
    r = 2.0**-8 * math.sqrt((2 * depth + 1) / 3)
    mean, p99, most = float(gap.mean()), float(np.quantile(gap, 0.99)), float(gap.max())
    return {
        "kind": kind,
        "layers": depth,
        "tokens": len(gap),
        "mean": mean,
        "p99": p99,
        "max": most,
        "p99_in_r": p99 / r,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--trains", nargs="+", choices=TRAINS, default=list(TRAINS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--noise", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.noise:
        # Families with a tower have their own depth; the others are made deeper.
        depths = [
            (kind, depth) for kind in given.kinds for depth in (DEPTHS if kind in ("qwen2", "qwen3") else (None,))
        ]
        for kind, depth in depths:
            print(json.dumps(noise(kind, depth)), flush=True)
        return
    cells: list[dict[str, Any]] = []
    for kind in given.kinds:
        for name in given.trains:
            cells.append(cell(kind, name, given.steps))
            print(json.dumps(cells[-1]), flush=True)
            if given.json:
                given.json.write_text(json.dumps(cells, indent=1) + "\n")
    print(table(cells))


if __name__ == "__main__":
    main()
