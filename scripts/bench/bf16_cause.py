"""Why full training in bfloat16 may end elsewhere than in float32: one source of difference at a time, several seeds.

    python scripts/bench/bf16_cause.py [--kinds qwen2 qwen3_vl] [--seeds 0 1 2] [--steps 100] [--lr 5e-4] [--json FILE]

The runs of `bf16_drift.py`. For each seed of the draws: float32; bfloat16; float32 with the weights that the model
computes with rounded to bfloat16 after each step, once with the optimiser's fp32 copy, as DeepSpeed keeps one in
bfloat16, and once without; and float32 from a start moved by a random 2^-9 of each weight, which is what rounding
to bfloat16 moves at most. Each run is compared with float32 of the same seed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import bf16_drift as drift
import torch
from families import KINDS
from torch import Tensor

from mm_spine.adapt import Hooks, StepRecord, adapt
from mm_spine.config import ModelConfig
from mm_spine.policy.model import Policy
from mm_spine.training.engine import Engine

WHOLE, HALF, MASTER, PLAIN, MOVED = "float32", "bfloat16", "rounded, fp32 copy", "rounded, no copy", "start moved"
VARIANTS = (WHOLE, HALF, MASTER, PLAIN, MOVED)


class End(NamedTuple):
    """A run's votes by step, the mean share of moved weights whose move in a step bfloat16 cannot show, and the
    log-probs (S, V) at its end."""

    votes: list[list[Any]]
    lost: float
    log_probs_SV: Tensor


@contextmanager
def rounding(keep: bool) -> Iterator[None]:
    """Round the weights to bfloat16 after each step, and with `keep` let the optimiser go on from what they were."""
    step, kept = Engine.step, dict[str, Tensor]()

    def stepped(engine: Engine, lr: float) -> tuple[float, float | None]:
        weights = engine.policy.trainable()
        with torch.no_grad():
            for name, value in kept.items():
                weights[name].copy_(value)
            found = step(engine, lr)
            for name, weight in weights.items():
                if keep:
                    kept[name] = weight.detach().clone()
                weight.copy_(weight.bfloat16())
        return found

    with patch.object(Engine, "step", stepped):
        yield


@contextmanager
def watching(lost: list[float]) -> Iterator[None]:
    """Append by step the share of the moved weights whose move does not change their value rounded to bfloat16."""
    step = Engine.step

    def stepped(engine: Engine, lr: float) -> tuple[float, float | None]:
        before = engine.policy.weights()
        found = step(engine, lr)
        pairs = [(before[name], weight.detach()) for name, weight in engine.policy.trainable().items()]
        stayed = sum(int(((a.bfloat16() == (a.bfloat16() + (b - a)).bfloat16()) & (a != b)).sum()) for a, b in pairs)
        lost.append(stayed / max(1, sum(int((a != b).sum()) for a, b in pairs)))
        return found

    with patch.object(Engine, "step", stepped):
        yield


def move(policy: Policy, seed: int) -> None:
    """Move every trainable weight by a random part of 2^-9 of itself."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in policy.trainable().values():
            weight.mul_(1 + 2.0**-9 * (2 * torch.rand(weight.shape, generator=random) - 1))


def run(kind: str, variant: str, seed: int, steps: int, lr: float, responses: drift.Responses) -> End:
    """Train one variant and return its end."""
    dtype = torch.bfloat16 if variant == HALF else torch.float32
    policy, questions, records = drift.policy_of(kind, dtype, ModelConfig()), drift.questions_of(kind), []
    if variant == MOVED:
        move(policy, seed)
    config = drift.config_of(steps, seed)
    config = config.model_copy(update={"optim": config.optim.model_copy(update={"lr": lr})})
    lost: list[float] = []
    around = {MASTER: lambda: rounding(True), PLAIN: lambda: rounding(False)}
    with around.get(variant, lambda: watching(lost))():
        adapt(questions, policy, config=config, hooks=Hooks(on_step=records.append))
    log_probs = drift.log_probs_of(policy, questions, responses)
    return End([votes_of(record) for record in records], sum(lost) / max(1, len(lost)), log_probs)


def votes_of(record: StepRecord) -> list[Any]:
    """Return the winner of each question of a step, by question."""
    return sorted((group.question.id, str(group.vote.answer)) for group in record.groups)


def rows_of(kind: str, seeds: Sequence[int], steps: int, lr: float, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Return a row for each variant and seed."""
    first, questions = drift.policy_of(kind, torch.float32, ModelConfig()), drift.questions_of(kind)
    responses, rows = drift.responses_of(first, questions, 64), []
    for seed in seeds:
        whole = run(kind, WHOLE, seed, steps, lr, responses)
        for variant in VARIANTS:
            end = whole if variant == WHOLE else run(kind, variant, seed, steps, lr, responses)
            apart = [i for i, (a, b) in enumerate(zip(end.votes, whole.votes, strict=True)) if a != b]
            tokens, counts = end.log_probs_SV.argmax(-1).unique(return_counts=True)
            rows.append(
                {
                    "kind": kind,
                    "seed": seed,
                    "variant": variant,
                    "first_other_vote": apart[0] if apart else None,
                    "kl": drift.kl(whole.log_probs_SV, end.log_probs_SV),
                    "same_token": drift.agreement(whole.log_probs_SV, end.log_probs_SV),
                    "end_token": int(tokens[counts.argmax()]),
                    "end_share": float(counts.max() / counts.sum()),
                    "lost": end.lost if variant == WHOLE else None,
                }
            )
            say(json.dumps(rows[-1]))
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return one line for each family and variant, its seeds side by side."""
    lines = ["| family | run | token at the end, by seed | same as float32 | first other vote, step | KL |"]
    lines.append("|---|---|---|---|---|---|")
    for kind in dict.fromkeys(row["kind"] for row in rows):
        for variant in VARIANTS:
            of = [row for row in rows if (row["kind"], row["variant"]) == (kind, variant)]
            same = sum(row["same_token"] > 0.5 for row in of)
            cells = [
                ", ".join(str(row["end_token"]) for row in of),
                f"{same} of {len(of)}",
                ", ".join("-" if row["first_other_vote"] is None else str(row["first_other_vote"]) for row in of),
                ", ".join(f"{row['kl']:.2g}" for row in of),
            ]
            lines.append(f"| {kind} | {variant} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=["qwen2", "qwen3_vl"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for kind in given.kinds:
        rows += rows_of(kind, given.seeds, given.steps, given.lr, lambda line: print(line, flush=True))
        if given.json:
            given.json.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
