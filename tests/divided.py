"""Worker of `policy/test_partitioned`: two ranks that divide the weights, so that neither ever holds them all.

Started by torchrun as `divided.py FOLDER full|lora`; each rank writes `FOLDER/<rank>.pt`. Not a test module itself.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import deepspeed
import torch
from ranks import CASES, QUESTIONS, STEP, Saved, sgd
from small import Silent, small_config
from torch import Tensor

from mm_spine import distributed
from mm_spine.adapt import Hooks, adapt
from mm_spine.config import RunConfig
from mm_spine.policy import partitioned
from mm_spine.policy.model import Policy
from mm_spine.runs.fingerprint import starting_weights
from mm_spine.runs.folder import RunFolder
from mm_spine.sampling.vllm.weights import served_weights
from mm_spine.training.engine import Engine, zero_settings

NOTHING_KEPT = {
    "zero_optimization": {
        "stage3_param_persistence_threshold": 0,
        "stage3_max_live_parameters": 1,
        "stage3_max_reuse_distance": 0,
        "stage3_prefetch_bucket_size": 0,
    }
}
"""The sizes of a large model, shrunk: DeepSpeed would keep a model of this size whole."""


class Serving(Saved):
    """Saved rollouts, without entropies as from vLLM, and weights taken over one at a time, as vLLM takes them."""

    def __init__(self, rollouts: Any, policy: Policy, watch: Watch) -> None:
        super().__init__(rollouts)
        self.policy, self.watch = policy, watch
        self.served: dict[str, Tensor] = {}

    def sync(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        for name, weight in served_weights(self.policy):
            self.watch.look()
            self.served[name] = weight.clone()


class Watch:
    """The largest share of the text model's numbers that this rank has held whole at once."""

    def __init__(self) -> None:
        self.share, self.policy, self.looks = 0.0, None, 0

    def look(self, *ignored: Any) -> None:
        if self.policy is None:
            return
        parameters = list(self.policy.text.parameters())
        # A parameter that is partitioned is empty until it is gathered.
        held = sum(p.numel() for p in parameters if partitioned.is_partitioned(p))
        self.share = max(self.share, held / sum(map(partitioned.size_of, parameters)))
        self.looks += 1

    def follow(self, policy: Policy) -> None:
        self.policy = policy
        for module in policy.text.modules():
            module.register_forward_pre_hook(self.look)
            module.register_forward_hook(self.look)
        for parameter in policy.text.parameters():
            if parameter.requires_grad:
                parameter.register_hook(self.look)


def config_of(folder: Path, train: str) -> RunConfig:
    (folder / "deepspeed.json").write_text(json.dumps(NOTHING_KEPT))
    engine = {"zero_stage": 3, "keep_whole": False, "deepspeed": str(folder / "deepspeed.json"), "token_budget": 1}
    model = {"path": str(folder / "model"), "train": train}
    return small_config(STEP, CASES["epochs"], {"engine": engine, "model": model, "sampling": {"backend": "vllm"}})


def one_step(policy: Policy, config: RunConfig, rollouts: Mapping[str, Any], sampler: Any = None) -> dict[str, Any]:
    """The whole gradients of a step's two epochs, the second of them with a KL to the start, and its report."""
    gradients, records = [], []
    usual = Engine.step

    def stepping(self: Engine, lr: float) -> Any:
        gradients.append(self.gradients())
        return usual(self, lr)

    with mock.patch("torch.optim.AdamW", sgd), mock.patch.object(Engine, "step", stepping):
        hooks = Hooks(on_step=records.append)
        adapt(QUESTIONS, policy, Silent(sampler or Saved(rollouts)), config=config, hooks=hooks)
    return {"gradients": gradients, "report": vars(records[0].report)}


def load(config: RunConfig, watch: Watch) -> Policy:
    """Load partitioned; note how many weights of the text model were whole at once."""
    whole: list[int] = []
    usual = partitioned._put

    def put(model: Any, name: str, parameter: Any) -> None:
        usual(model, name, parameter)
        loaded = [(n, p) for n, p in model.named_parameters() if p.device.type != "meta" and "visual" not in n]
        whole.append(sum(not partitioned.is_partitioned(p) for _, p in loaded))

    with mock.patch.object(partitioned, "_put", put):
        settings = zero_settings(False, 0, config.optim, config.engine)
        policy = Policy.load(config.model.path, config.model, 0, partition=settings)
    watch.follow(policy)
    watch.whole_while_loading = max(whole)
    return policy


def main(folder: Path, train: str) -> None:
    torch.set_num_threads(1)
    distributed.initialise()
    config, watch = config_of(folder, train), Watch()
    enter = deepspeed.zero.GatheredParameters.__enter__

    def entering(self: Any, *ignored: Any) -> None:
        enter(self)
        watch.look()

    with mock.patch.object(deepspeed.zero.GatheredParameters, "__enter__", entering):
        policy = load(config, watch)
        found = {"start": starting_weights(policy), "counts": policy.count_parameters()}
        rollouts = torch.load(folder / "rollouts.pt", weights_only=False)
        sampler = Serving(rollouts, policy, watch)
        found |= one_step(policy, config, rollouts, sampler)
        RunFolder(folder / "run").save_adapted(policy)
    found |= {"served": sampler.served, "share": watch.share, "looks": watch.looks}
    found |= {"whole_while_loading": watch.whole_while_loading, "partitioned": policy.partitioned}
    torch.save(found, folder / f"{distributed.rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
