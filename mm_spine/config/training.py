"""Define the sections of a configuration that say how the weights are trained and kept."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from mm_spine.config.values import BelowOne, Budget, Count, Interval, NonNegative, Positive, Section


class OptimConfig(Section):
    """AdamW on `steps` rollout batches of `questions_per_step` questions, each used for `epochs` optimiser steps."""

    steps: Count = Field(default=12, description="number of rollout batches")
    questions_per_step: Count = Field(default=32, description="questions in a rollout batch")
    epochs: Count = Field(default=1, description="optimiser steps on each rollout batch")
    lr: Positive = Field(default=1e-6, description="learning rate after warm-up")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="cosine", description="how the learning rate decays to 0"
    )
    warmup: BelowOne = Field(default=0.0, description="share of the steps over which the learning rate rises")
    weight_decay: NonNegative = Field(default=0.0, description="AdamW's weight decay")
    betas: tuple[BelowOne, BelowOne] = Field(default=(0.9, 0.999), description="AdamW's betas")
    grad_clip: NonNegative = Field(default=1.0, description="largest gradient norm; 0: no limit")


class EngineConfig(Section):
    """DeepSpeed. `token_budget` limits the packed tokens of a micro-batch; `auto` measures before step 1 what fits
    on the card. `checkpoint_activations` recomputes a layer's activations instead of keeping them. `parity_limit`
    (nats) limits the mean gap between the sampler's log-probs and the trainer's. Unset, it is 0.01 in float32 and 0.1
    in bfloat16, and the gap's slope over the log-prob and its KL estimate against the first step's are checked too.
    `offload_while_sampling` moves a GPU's optimiser state and KL anchor to the host; unset, it does where vLLM samples
    and the ZeRO stage is below 3. The anchor then leaves the GPU during the optimiser's step too."""

    zero_stage: Literal[0, 1, 2, 3] = Field(
        default=0,
        description="what ranks divide: 1 optimiser state, 2 gradients too, 3 a training copy of the weights too",
    )
    keep_whole: bool = Field(
        default=True,
        description="with `zero_stage: 3`, also keep whole weights on each rank to sample from; `false`: no rank holds "
        "them, for a model that does not fit, which vLLM must sample from",
    )
    token_budget: Budget = Field(
        default=8192, description="most packed tokens of a micro-batch; only a single longer response exceeds it"
    )
    offload_while_sampling: bool | None = Field(
        default=None, description="keep optimiser state and KL anchor in host memory while a GPU samples"
    )
    checkpoint_activations: bool = Field(
        default=False, description="recompute activations: less memory, a second forward pass of each layer"
    )
    deepspeed: Path | None = Field(default=None, description="a JSON file of further DeepSpeed settings")
    parity_limit: Positive | None = Field(
        default=None,
        description="largest mean gap, in nats, before the run stops; replaces the other checks of the gap",
    )
    measure_update: bool = Field(default=False, description="report how far a step moved the weights")

    @model_validator(mode="after")
    def _can_offload(self) -> EngineConfig:
        if self.offload_while_sampling and self.zero_stage == 3:
            raise ValueError(
                "offload_while_sampling=true: with zero_stage=3 DeepSpeed moves only the states of its own optimiser; "
                "set engine.zero_stage=2, or offload_optimizer in the file engine.deepspeed"
            )
        return self


class CheckpointConfig(Section):
    """Checkpoints are written between steps: every `every` steps, with `auto` once ten minutes have passed since the
    last one, and always when a signal stops the run and before the last evaluation (0: only then). With a number of
    steps the newest stay in the folder of a finished run; otherwise they are removed when its results are written."""

    every: Interval = Field(default="auto", description="steps between checkpoints; `auto`: ten minutes")
    keep: Count = Field(default=2, description="how many of the newest are kept")


class CacheConfig(Section):
    """Image features, kept in host memory and, with `folder`, in files that other runs and ranks use too. Without
    `folder` nothing outlives the run. No result depends on the cache."""

    memory_gb: NonNegative = Field(default=4.0, description="10^9 bytes of host memory for each process")
    folder: Path | None = Field(default=None, description="keep features in this folder, beyond the run")
    disk_gb: NonNegative = Field(default=50.0, description="10^9 bytes of files in that folder")
