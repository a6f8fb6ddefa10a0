"""DeepSpeed around the text policy: initialise, forward, backward, step, publish, and the state of a checkpoint."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from mm_spine import distributed
from mm_spine.config import ConfigError, EngineConfig, OptimConfig
from mm_spine.policy.distribution import Distribution
from mm_spine.policy.errors import FrozenError
from mm_spine.policy.finite import first_not_finite
from mm_spine.policy.head import Anchor
from mm_spine.policy.model import Policy
from mm_spine.policy.packed import PackedBatch
from mm_spine.policy.partitioned import size_of
from mm_spine.policy.text import Trained
from mm_spine.types import Statistic


class Engine:
    """Owns the optimiser.

    Under ZeRO-3 it trains a partitioned copy and `publish` refreshes the whole weights, unless the policy's own weights
    are partitioned.
    """

    def __init__(self, policy: Policy, optim: OptimConfig, config: EngineConfig) -> None:
        if policy.device.type == "cpu":
            # Otherwise DeepSpeed warns that it found no GPU.
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        import deepspeed

        # The table is made by a compiler that looks for libraries. DeepSpeed hides its messages by the file number of
        # the standard error, which in a notebook only the process's own has.
        with redirect_stderr(sys.__stderr__ or sys.stderr):
            # Skips a minute of compiling a CPU collective that one machine with gloo does not need.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        self._was_deterministic = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(policy.device.type == "cpu" or self._was_deterministic)
        policy.assert_frozen()
        self.policy = policy
        self.partitioned = config.zero_stage == 3
        # Without whole weights to sample from, the policy's own parameters are those that are partitioned.
        self._copied = self.partitioned and not policy.partitioned
        module = deepcopy(policy.text) if self._copied else policy.text
        self._checkpointed = checkpoint_layers(module.language_model) if config.checkpoint_activations else []
        trainable = [p for p in module.parameters() if p.requires_grad]
        # On a GPU one kernel takes the step, without temporaries. On a CPU torch chooses.
        self._fused = True if policy.device.type == "cuda" else None
        self._adamw = torch.optim.AdamW(
            trainable, lr=optim.lr, betas=optim.betas, weight_decay=optim.weight_decay, fused=self._fused
        )
        self._assert_tower_absent(self._adamw)
        settings = deepspeed_settings(policy, optim, config)
        with distributed.launch_variables():
            self._engine, self._optimizer, _, _ = deepspeed.initialize(
                model=module, optimizer=self._adamw, config=settings
            )
        self._measure = config.measure_update

    def forward(
        self,
        batch: PackedBatch,
        distribution: Distribution,
        anchor: Anchor | None,
        statistics: Sequence[Statistic] = (),
    ) -> Trained:
        """Run the packed forward with gradient, through DeepSpeed's hooks."""
        with _training(self._checkpointed):
            return self._engine(batch, distribution, anchor, statistics)

    def backward(self, loss: Tensor, last: bool) -> None:
        """Accumulate the gradient of `loss`. The `last` micro-batch of a step reduces it over ranks."""
        self._engine.set_gradient_accumulation_boundary(last)
        # DeepSpeed averages over ranks. The loss is a part of a sum over the step's tokens on all ranks.
        self._engine.backward(loss * distributed.world_size(), scale_wrt_gas=False)

    def step(self, lr: float) -> tuple[float, float | None]:
        """Take one AdamW step. Returns the gradient norm before clipping and, if measured, the norm of the update."""
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        before = self.policy.weights() if self._measure else None
        whole = self._whole_norm()
        self._engine.step()
        norm = self._engine.get_global_grad_norm() if whole is None else whole
        self.publish()
        return float(norm), None if before is None else self._distance(before)

    @contextmanager
    def other_weights(self) -> Iterator[None]:
        """Run a block with other values in the policy's parameters; no gathered value outlives it or enters it."""
        if self._copied or not self.partitioned:
            yield
            return
        self._optimizer.parameter_offload.partition_all_parameters()
        try:
            yield
        finally:
            self._optimizer.parameter_offload.partition_all_parameters()

    def gradients_are_finite(self) -> bool:
        """Return whether this rank's share of the gradient is finite. Call it between `backward` and `step`."""
        # DeepSpeed's step skips a gradient that is not finite in bf16 and applies it in fp32, both without a word.
        if self._optimizer is self._adamw:
            gradients = [p.grad for p in self._engine.module.parameters() if p.grad is not None]
        else:
            lists = self._optimizer.averaged_gradients.values()
            gradients = [gradient for each in lists for gradient in each or () if gradient is not None]
        return first_not_finite(("", gradient) for gradient in gradients) is None

    def discard(self) -> None:
        """Drop the gradients since the last step, also those that a backward which failed half-way has left."""
        # DeepSpeed has no call for this. Below is the state that its hooks fill during a backward.
        self._engine.zero_grad()
        if self._optimizer is self._adamw:
            return
        zero = self._optimizer
        for bucket in zero.ipg_buckets.values():
            # Stage 3 keeps its buffer and fills it from the start again; the other stages allocate a new one.
            bucket.clear_params() if self.partitioned else bucket.clear()
        reduced = zero.params_already_reduced
        for key in reduced if isinstance(reduced, dict) else range(len(reduced)):
            reduced[key] = False
        zero.averaged_gradients.clear()
        zero.zero_grad()
        zero._backward_hook_state.backward_active_depth = 0
        zero.clear_backward_seen_flag()
        if self.partitioned:
            zero.parameter_offload.partition_all_parameters()
            zero.micro_step_id = 0
        else:
            zero.all_grad_tensors.clear()
            zero._clear_previous_reduced_grads()
            zero.ready_for_gradients = False
            zero.micro_step_id = -1

    def bytes_to_come(self) -> int:
        """Return the bytes of AdamW's two moments, 0 once the first step has allocated them."""
        groups = [group["params"] for group in self._adamw.param_groups]
        return sum(2 * p.nbytes for params in groups for p in params if not self._adamw.state.get(p))

    def to_host(self) -> None:
        """Move AdamW's state, and DeepSpeed's fp32 copy of the weights, to the host until `to_card`. Not for ZeRO-3."""
        from deepspeed.runtime.zero.offload_config import OffloadStateTypeEnum as Kind
        from deepspeed.runtime.zero.offload_states import offload_optimizer_states

        pinned = self.policy.device.type == "cuda"
        if self._optimizer is self._adamw:
            offload_optimizer_states(self._adamw, "cpu", pin_memory=pinned)
        else:
            self._engine.offload_states(include=[Kind.hp_params, Kind.optim_states], pin_memory=pinned)
        if pinned:
            torch.cuda.empty_cache()

    def to_card(self) -> None:
        """Undo `to_host`."""
        from deepspeed.runtime.zero.offload_states import reload_optimizer_states

        if self._optimizer is self._adamw:
            reload_optimizer_states(self._adamw, self.policy.device)
        else:
            self._engine.reload_states()

    def publish(self) -> None:
        """Copy partitioned weights into the policy's whole ones. Below ZeRO-3 the engine trains those themselves."""
        if not self._copied:
            return
        import deepspeed

        whole = self.policy.trainable()
        for name, parameter in self._engine.module.named_parameters():
            if parameter.requires_grad:
                with deepspeed.zero.GatheredParameters([parameter]), torch.no_grad():
                    whole[name].copy_(parameter)

    def gradients(self) -> dict[str, Tensor]:
        """Return whole gradients by name, reduced over ranks. Call it between `backward` and `step`."""
        from deepspeed.utils import safe_get_full_grad

        named = self._engine.module.named_parameters()
        return {name: safe_get_full_grad(p).clone() for name, p in named if p.requires_grad}

    def state(self) -> dict[str, Tensor]:
        """Return what AdamW holds on this rank: `<i>.value` and its state, `<i>.exp_avg` and so on, by parameter.

        Without ZeRO the values are the policy's trainable weights and are left out.
        """
        held: dict[str, Tensor] = {}
        for i, parameter in enumerate(self._stepped()):
            if self._optimizer is not self._adamw:
                held[f"{i}.value"] = parameter.detach()
            # AdamW allocates its state in the first step.
            held |= {f"{i}.{name}": value for name, value in self._adamw.state.get(parameter, {}).items()}
        return held

    def restore(self, held: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
        """Take over what `state` returned and, except under ZeRO-3, the policy's trainable `weights`.

        Raises ConfigError where they are of another model or ZeRO stage.
        """
        stepped, whole = self._stepped(), {} if self.partitioned else self.policy.trainable()
        shapes = {name: tuple(weight.shape) for name, weight in whole.items()}
        if shapes != {name: tuple(weight.shape) for name, weight in weights.items()}:
            raise ConfigError("the checkpoint is of another model, model.train or ZeRO stage; resume with the same")
        with torch.no_grad():
            for name, weight in whole.items():
                weight.copy_(weights[name])
            for i, parameter in enumerate(stepped):
                if self._optimizer is not self._adamw:
                    parameter.copy_(held[f"{i}.value"])
                state = {name.partition(".")[2]: value for name, value in held.items() if name.startswith(f"{i}.")}
                state.pop("value", None)
                # AdamW counts its steps on the CPU, wherever the parameter is, unless it is fused.
                self._adamw.state[parameter] = {
                    name: value.to("cpu" if name == "step" and not self._fused else parameter.device, copy=True)
                    for name, value in state.items()
                }
        if self.partitioned:
            self._partition_again()
        self.publish()

    def _stepped(self) -> list[Tensor]:
        """Return the tensors that AdamW steps on this rank: the parameters, under ZeRO flat partitions of them."""
        if self._optimizer is self._adamw:
            return [parameter for group in self._adamw.param_groups for parameter in group["params"]]
        if getattr(self._optimizer, "swap_optimizer", False):
            raise ConfigError("engine.deepspeed: an optimiser on NVMe cannot be checkpointed; offload it to the cpu")
        if self.partitioned:
            return list(self._optimizer.fp32_partitioned_groups_flat)
        return list(self._optimizer.single_partition_of_fp32_groups)

    def _partition_again(self) -> None:
        """Refresh ZeRO-3's partitions of the weights from AdamW's, as DeepSpeed does after a step."""
        zero = self._optimizer
        for i in range(len(zero.fp32_partitioned_groups_flat)):
            zero._reassign_or_swap_out_partitioned_parameters(i)
        # Small parameters stay whole on every rank and are refreshed from the partitions.
        if zero.persistent_parameters:
            zero.persistent_parameters[0].partition(zero.persistent_parameters)
            zero.persistent_parameters[0].all_gather(zero.persistent_parameters)

    def close(self) -> None:
        """Release hooks and buffers, so that another engine can train the same policy."""
        self._engine.destroy()
        if self._checkpointed:
            self._engine.module.language_model.gradient_checkpointing_disable()
        torch.use_deterministic_algorithms(self._was_deterministic)

    def _whole_norm(self) -> Tensor | None:
        """Return the gradient norm in fp32 without ZeRO, where DeepSpeed computes none; None otherwise."""
        if self._optimizer is not self._adamw:
            return None
        return torch.nn.utils.get_total_norm([p.grad for p in self._engine.module.parameters() if p.grad is not None])

    def _distance(self, before: dict[str, Tensor]) -> float:
        after = self.policy.trainable()
        return math.sqrt(sum(float(((after[n].detach() - w).double() ** 2).sum()) for n, w in before.items()))

    def _assert_tower_absent(self, optimizer: torch.optim.Optimizer) -> None:
        tower = {id(p): name for name, p in self.policy.frozen_tower().items()}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if id(parameter) in tower:
                    raise FrozenError(f"visual.{tower[id(parameter)]} is in the optimizer: the tower must stay frozen")


def can_offload(device: torch.device) -> bool:
    """Whether the device has memory of its own, which the host can relieve."""
    return device.type == "cuda"


def checkpoint_layers(language_model: Any) -> list[Any]:
    """Have transformers recompute each decoder layer in the backward. Returns the layers.

    A layer checkpoints only while its `training` flag is set (see `_training`).
    """
    language_model.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
    # Only re-entrant checkpointing needs embeddings that require gradients.
    language_model.disable_input_require_grads()
    return [m for m in language_model.modules() if isinstance(m, GradientCheckpointingLayer)]


@contextmanager
def _training(layers: Sequence[Any]) -> Iterator[None]:
    """Set the `training` flag of `layers` for the block."""
    # transformers checkpoints a layer only in training, and such a layer drops a sampler's cache: so only here. The
    # flag is set on the layer itself, not on its parts, so that no dropout is drawn.
    for layer in layers:
        layer.training = True
    try:
        yield
    finally:
        for layer in layers:
            layer.training = False


def deepspeed_settings(policy: Policy, optim: OptimConfig, config: EngineConfig) -> dict[str, Any]:
    """Return DeepSpeed's configuration: the file `engine.deepspeed` if given, overlaid with the keys that are ours."""
    size = sum(map(size_of, policy.trainable().values()))
    return zero_settings(policy.text.head.weight.dtype == torch.bfloat16, size, optim, config)


def zero_settings(bf16: bool, size: int, optim: OptimConfig, config: EngineConfig) -> dict[str, Any]:
    """Return DeepSpeed's configuration for `size` trainable parameters, or for loading a model partitioned (0)."""
    settings: dict[str, Any] = json.loads(config.deepspeed.read_text()) if config.deepspeed else {}
    zero = settings.setdefault("zero_optimization", {})
    # Without ZeRO, DeepSpeed's bf16 optimiser departs from fp32 within two steps (update norm 1.15 against 1.41).
    # That of ZeRO-1 does not, and on one process it partitions nothing.
    zero.update(stage=max(config.zero_stage, 1) if bf16 else config.zero_stage)
    # DeepSpeed allocates its bucket in every step. Its default of 2 GB is too much for a small model.
    zero.setdefault("reduce_bucket_size", min(size, 500_000_000) or 500_000_000)
    settings |= {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": optim.grad_clip,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": bf16},
    }
    return settings
