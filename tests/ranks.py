"""Worker of `test_distributed`: the same saved rollouts on one or several processes, under every ZeRO stage.

Started as `ranks.py FOLDER`, or by torchrun; writes `FOLDER/<name>.pt` from rank 0. Not a test module itself.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import deepspeed  # noqa: F401  # before AdamW is replaced: it derives classes from it
import torch
from small import Silent, digit_policy, small_config
from tiny import tiny_questions
from torch import Tensor

from mm_spine import distributed
from mm_spine.adapt import Hooks, adapt
from mm_spine.methods.table import METHODS
from mm_spine.runs.run import run
from mm_spine.sampling.hf import HFSampler
from mm_spine.training.engine import Engine
from mm_spine.types import Question, Rollout

STAGES = (0, 2, 3)
QUESTIONS = tiny_questions(7)
STEP = {
    "method": {"name": "spine", "unanimous": "regularise", "kl_weight": 0.5},
    "optim": {"steps": 1, "questions_per_step": 7, "lr": 1.0, "schedule": "constant"},
}
CASES: dict[str, Mapping[str, Any]] = {
    "even": {"optim": {"questions_per_step": 6}},
    "uneven": {"engine": {"token_budget": 1}},
    "alone": {"optim": {"questions_per_step": 1}},
    "epochs": {"optim": {"epochs": 2, "lr": 0.1}, "method": {"kl": "k3"}},
    "scored": {"optim": {"questions_per_step": 1}},
    "asked": {"method": {"name": "likelihood"}, "optim": {"questions_per_step": 3}},
}
ROWS = [
    name
    for name, row in METHODS.items()
    if row.trains and row.label_free and row.check is None and "wordings" not in row.sampling
]
"""The methods, each of which takes a step without ZeRO; but for those that need another model, or other prompts than
those that the saved rollouts answer (tests/methods/test_rows_sampling.py has these)."""
WITHOUT_ENTROPIES = ("scored",)
"""Cases whose sampler gives none, so that the ranks score, the second one nothing."""


class Saved:
    """A sampler that returns saved rollouts."""

    def __init__(self, rollouts: Mapping[str, list[Rollout]]) -> None:
        self._rollouts = rollouts

    def sample(
        self, questions: Sequence[Question], n: int, *, step: int, purpose: str, greedy: bool = False, first: int = 0
    ) -> list[list[Rollout]]:
        return [self._rollouts[question.id][:n] for question in questions]

    def sync(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        pass


def save_rollouts(path: Path) -> None:
    """What the starting model says to every question."""
    config = small_config(STEP)
    drawn = HFSampler(digit_policy(), config.sampling).sample(QUESTIONS, 4, step=0, purpose="train")
    torch.save({question.id: group for question, group in zip(QUESTIONS, drawn, strict=True)}, path)


def sgd(parameters: Any, lr: float, **ignored: Any) -> torch.optim.Optimizer:
    """In AdamW's place: Adam turns 1e-8 of noise into a visible part of the learning rate."""
    return torch.optim.SGD(parameters, lr=lr)


def one_step(
    stage: int, layers: Mapping[str, Any], rollouts: Mapping[str, list[Rollout]], silent: bool = False
) -> dict[str, Any]:
    """The gradients before each optimiser step, the weights after the last, and the report."""
    config = small_config(STEP, layers, {"engine": {**layers.get("engine", {}), "zero_stage": stage}})
    policy, gradients, records = digit_policy(), [], []
    usual = Engine.step

    def stepping(self: Engine, lr: float) -> Any:
        gradients.append(self.gradients())
        return usual(self, lr)

    with mock.patch("torch.optim.AdamW", sgd), mock.patch.object(Engine, "step", stepping):
        sampler = Silent(Saved(rollouts)) if silent else Saved(rollouts)
        adapt(QUESTIONS, policy, sampler, config=config, hooks=Hooks(on_step=records.append))
    return {"gradients": gradients, "weights": policy.weights(), "report": vars(records[0].report)}


def stopped_and_resumed(stage: int, checkpoints: Path) -> dict[str, Any]:
    """The weights after three steps without a break, and of a run stopped after the second and resumed."""
    config = small_config({"engine": {"zero_stage": stage}, "optim": {"epochs": 2}})
    stops = iter([None, "SIGTERM"])

    def weights(hooks: Hooks) -> dict[str, Tensor]:
        policy = digit_policy()
        adapt(QUESTIONS, policy, config=config, hooks=hooks)
        return policy.weights()

    whole = weights(Hooks())
    stopped = weights(Hooks(should_stop=lambda: next(stops), checkpoints=checkpoints))
    return {"whole": whole, "stopped": stopped, "resumed": weights(Hooks(checkpoints=checkpoints, resume=True))}


def main(folder: Path) -> None:
    """Every case under every stage, a resumed run, then a whole run if its configuration is there."""
    torch.set_num_threads(1)
    distributed.initialise()
    rollouts = torch.load(folder / "rollouts.pt", weights_only=False)
    for case in CASES:
        for stage in STAGES:
            result = one_step(stage, CASES[case], rollouts, silent=case in WITHOUT_ENTROPIES)
            if distributed.rank() == 0:
                torch.save(result, folder / f"{case}_{stage}.pt")
    for name in ROWS:
        result = one_step(0, {"method": {"name": name}}, rollouts)
        if distributed.rank() == 0:
            torch.save(result, folder / f"row_{name}_0.pt")
    for stage in STAGES[1:]:
        result = stopped_and_resumed(stage, folder / f"checkpoints{stage}")
        if distributed.rank() == 0:
            torch.save(result, folder / f"resume_{stage}.pt")
    if (folder / "run.json").exists():
        run(small_config(json.loads((folder / "run.json").read_text())), folder / "run")
    if distributed.rank() == 0:
        (folder / "done").touch()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
