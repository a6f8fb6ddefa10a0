"""Worker of `test_distributed`: two processes of which the second one meets numbers that are not finite in step 1.

Started by torchrun as `broken_ranks.py FOLDER`. Every rank writes what it was told to `FOLDER/<name>_<rank>.json`, and
last the exit code of the command line, with which it then ends. Not a test module itself.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from adapting import MIXED, QUESTIONS
from small import Silent, digit_policy, small_config
from torch import Tensor

from mm_spine import cli, distributed
from mm_spine.adapt import Hooks, adapt
from mm_spine.policy.errors import NotFinite
from mm_spine.policy.text import TextPolicy
from mm_spine.sampling.hf import HFSampler
from mm_spine.training import scoring
from mm_spine.training.engine import Engine

STAGES = (0, 2, 3)


def log_probs(now: Callable[[], bool]) -> AbstractContextManager[Any]:
    """The log-probs of the last response of each micro-batch are NaN while `now` says so."""
    usual = Engine.forward

    def broken(self: Engine, *args: Any) -> Any:
        found = usual(self, *args)
        if now():
            found.stats.logp_NT.data[-1] = torch.nan
        return found

    return mock.patch.object(Engine, "forward", broken)


def gradients(now: Callable[[], bool]) -> AbstractContextManager[Any]:
    """The gradient is infinite, and the loss is not."""
    usual = TextPolicy.trunk

    def broken(self: TextPolicy, batch: Any) -> Any:
        hidden = usual(self, batch)
        if now() and hidden.requires_grad:
            hidden.register_hook(lambda gradient: gradient * torch.inf)
        return hidden

    return mock.patch.object(TextPolicy, "trunk", broken)


def draws(now: Callable[[], bool]) -> AbstractContextManager[Any]:
    """The sampler draws from log-probs that are NaN."""
    usual = HFSampler._draw

    def broken(self: HFSampler, *args: Any) -> Any:
        drawn = usual(self, *args)
        return drawn._replace(logp_R=drawn.logp_R * torch.nan) if now() else drawn

    return mock.patch.object(HFSampler, "_draw", broken)


def scores(now: Callable[[], bool]) -> AbstractContextManager[Any]:
    """The weights are NaN while responses are scored."""
    usual = scoring.score_responses

    def broken(policy: Any, *args: Any) -> Any:
        if not now():
            return usual(policy, *args)
        weights = policy.weights()
        policy.restore({name: weight * torch.nan for name, weight in weights.items()})
        try:
            return usual(policy, *args)
        finally:
            policy.restore(weights)

    return mock.patch.object(scoring, "score_responses", broken)


def counted_steps(moves: list[float]) -> AbstractContextManager[Any]:
    """Each step of the optimiser adds its learning rate to `moves`."""
    usual = Engine.step

    def stepping(self: Engine, lr: float) -> Any:
        moves.append(lr)
        return usual(self, lr)

    return mock.patch.object(Engine, "step", stepping)


FAULTS = {"log_probs": log_probs, "gradients": gradients, "draws": draws, "scores": scores}


def stopped(stage: int, fault: str, checkpoints: Path) -> dict[str, Any]:
    """What stopped the run, how often the optimiser had moved, and whether weights and resumed run are right."""
    config = small_config(
        MIXED, {"engine": {"zero_stage": stage}, "checkpoint": {"every": 1}, "optim": {"steps": 2, "epochs": 1}}
    )
    policy, after_steps, moves = digit_policy(), list[dict[str, Tensor]](), list[float]()

    def sampler(of: Any) -> Any:
        own = HFSampler(of, config.sampling, config.seed)
        return Silent(own) if fault == "scores" else own

    def run(of: Any, **hooks: Any) -> None:
        adapt(QUESTIONS, of, sampler(of), config=config, hooks=Hooks(**hooks))

    said = "nothing"
    broken = FAULTS[fault](lambda: distributed.rank() == 1 and len(after_steps) == 1)
    with counted_steps(moves), broken:
        try:
            run(policy, checkpoints=checkpoints, on_step=lambda record: after_steps.append(policy.weights()))
        except NotFinite as error:
            said = str(error)
    whole, resumed = digit_policy(), digit_policy()
    run(whole)
    kept = sorted(path.name for path in checkpoints.iterdir())
    run(resumed, checkpoints=checkpoints, resume=True)
    return {
        "said": said,
        "moves": len(moves),
        "steps": len(after_steps),
        "unmoved": all(torch.equal(w, after_steps[-1][name]) for name, w in policy.weights().items()),
        "checkpoints": kept,
        "resumed": all(torch.equal(w, whole.weights()[name]) for name, w in resumed.weights().items()),
    }


def main(folder: Path) -> None:
    """Every fault under every stage, then one in a run of the command line."""
    torch.set_num_threads(1)
    distributed.initialise()
    rank = distributed.rank()
    for stage in STAGES:
        for fault in FAULTS:
            name = f"{fault}_{stage}"
            (folder / f"{name}_{rank}.json").write_text(json.dumps(stopped(stage, fault, folder / name)))
    sys.argv = ["mm-spine", "adapt", str(folder / "run.yaml"), "--output", str(folder / "run")]
    moves: list[float] = []
    with counted_steps(moves), log_probs(lambda: rank == 1 and len(moves) == 1):
        try:
            cli.main()
            code = 0
        except SystemExit as error:
            code = int(error.code or 0)
    (folder / f"code_{rank}.json").write_text(json.dumps(code))
    # The launcher ends all ranks when one has failed; each is to have written its own code.
    distributed.barrier()
    sys.exit(code)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
