"""Define the configuration of a run: one tree of validated, frozen sections.

`mm_spine.config.layers` builds the tree from YAML and overrides. docs/config.md is printed from the docstrings and
field descriptions below, by scripts/write_config_docs.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, model_validator

Share = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Votes = Annotated[int, Field(ge=2)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Denominator = Literal["all", "selected", "response"]


def _whole_or_auto(least: int, unit: str) -> PlainValidator:
    def check(value: Any) -> Any:
        if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value >= least):
            return value
        raise ValueError(f"a number of {unit}, {least} or more, or auto")

    return PlainValidator(check)


def expand_votes(section: Any) -> Any:
    """Expand `votes: 64` in a sampling section to `votes: {max: 64}`, so that layers merge key by key."""
    votes = section.get("votes") if isinstance(section, Mapping) else None
    return {**section, "votes": {"max": votes}} if votes is not None and not isinstance(votes, Mapping) else section


Budget = Annotated[int | Literal["auto"], _whole_or_auto(1, "tokens")]
Interval = Annotated[int | Literal["auto"], _whole_or_auto(0, "steps")]


class ConfigError(ValueError):
    """Report a wrong configuration. It is raised before any model loads, and its message names the key."""


class RunStopped(RuntimeError):
    """Report a run that cannot continue. The message says what was found and what to do."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class LoraConfig(_Section):
    """Low-rank adapters on the language model's projections (peft)."""

    rank: Count = Field(default=16, description="rank of an adapter")
    alpha: Count = Field(default=32, description="an adapter's output is multiplied by alpha / rank")


class ModelConfig(_Section):
    """The weights, their type, and which of them train. The vision tower never trains; its merger does on request."""

    path: str | None = Field(default=None, description="a model folder or hub id; null: the benchmark's own model")
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="type of the weights and of the forward pass"
    )
    train: Literal["full", "lora"] = Field(
        default="full", description="train the whole language model, or low-rank adapters on it"
    )
    lora: LoraConfig = Field(default=LoraConfig(), description="the adapters of `train: lora`")
    train_merger: bool = Field(
        default=False, description="also train the merger between vision tower and language model"
    )
    min_pixels: Count | None = Field(
        default=None, description="smaller images are enlarged to this many pixels; null: the processor's value"
    )
    max_pixels: Count | None = Field(
        default=None, description="larger images are reduced to this many pixels; null: the processor's value"
    )

    @model_validator(mode="after")
    def _budget(self) -> ModelConfig:
        if self.min_pixels is not None and self.max_pixels is not None and self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels={self.min_pixels} is more than max_pixels={self.max_pixels}: swap them")
        return self


class DecodingConfig(_Section):
    """How tokens are drawn. With transformers, `batch_rows` limits the rollouts decoded together, `kv_cache_gb`
    (10^9 bytes) the keys and values kept for them."""

    temperature: Positive = Field(
        default=1.0, description="temperature of the policy; log-probs and entropies are taken at it too"
    )
    top_p: Share = Field(default=1.0, description="nucleus sampling; below 1 only in evaluation")
    max_new_tokens: Count = Field(default=64, description="longest response, in tokens")
    batch_rows: Count = Field(default=512, description="most responses decoded together; transformers only")
    kv_cache_gb: Positive = Field(
        default=4.0, description="memory for keys and values, in 10^9 bytes; transformers only"
    )


class VotesConfig(_Section):
    """At most `max` rollouts vote on a question; `votes: 64` is short for `votes: {max: 64}`.

    `stop: decided` ends a vote once the remaining rollouts cannot change its winner, `stop: confident` once the
    posterior probability that the leader is the mode exceeds `level`. Both check first after `train_rollouts` rollouts,
    or after as many as a unanimous vote needs if those are more, then after every `round` further ones. A smaller
    `round` saves more tokens and prefills prompts more often.

    A response is cut off if it reached `max_new_tokens`. Unless it closed a box before, it has not committed to an
    answer. `cut_off` holds in evaluation too.
    """

    max: Votes = Field(default=16, description="most rollouts of a question")
    stop: Literal["never", "decided", "confident"] = Field(
        default="never", description="when to stop sampling a question"
    )
    level: BelowOne = Field(default=0.95, description="posterior probability at which `confident` stops")
    round: Count = Field(default=2, description="rollouts of each further round")
    ties: Literal["hash", "drop"] = Field(
        default="hash",
        description="of tied answers the first by a hash of question id and answer wins; "
        "`drop`: and the policy term leaves the question out",
    )
    cut_off: Literal["abstain", "count", "mask"] = Field(
        default="abstain",
        description="a response cut off before it closed a box does not vote and is rewarded as one without an answer; "
        "`mask`: the policy term leaves it out; `count`: it votes like any other",
    )


class TreeConfig(_Section):
    """ETMR's tree rollouts (arXiv 2508.11356): each root forks at `forks` of its tokens, `branches` times at each.

    The leaves vote: 1 + branches x forks of each tree; votes left over are flat rollouts. Fork tokens are those with
    the largest surprisal -log pi (Algorithm 1) or entropy, as `rank_by` says. With `distinct`, the branches of a
    fork begin with tokens that were not drawn there before.
    """

    forks: Count = Field(default=2, description="fork tokens of each root")
    branches: Count = Field(default=2, description="responses from each fork token")
    rank_by: Literal["surprisal", "entropy"] = Field(default="surprisal", description="what fork tokens are ranked by")
    distinct: bool = Field(default=False, description="branches of a fork begin with different tokens")


class VLLMConfig(_Section):
    """The vLLM engine. It takes all requests of a step as they come and decodes `max_rows` of them together. With
    `own_process` its model runs in a process beside the trainer's, as it always does on several GPUs or ranks."""

    tensor_parallel: Count = Field(
        default=1, description="GPUs that share one engine; with several ranks, so many of one host share an engine"
    )
    memory_share: Share = Field(default=0.45, description="share of a card's memory, weights included")
    kv_cache_gb: Count = Field(default=1, description="memory for keys and values on a CPU, in 2^30 bytes")
    max_rows: Count = Field(default=256, description="most responses decoded together")
    enforce_eager: bool = Field(default=False, description="do not use CUDA graphs")
    own_process: bool = Field(default=False, description="run the engine in a process beside the trainer's")


class SamplingConfig(DecodingConfig):
    """Rollouts for training: `votes` of them vote, the first `train_rollouts` are trained on."""

    backend: Literal["hf", "vllm"] = Field(default="hf", description="sample with transformers or with vLLM")
    votes: VotesConfig = Field(default=VotesConfig(), description="how many rollouts vote, and when a vote ends")
    train_rollouts: Count = Field(default=16, description="how many of the voting rollouts are trained on")
    tree: TreeConfig | None = Field(default=None, description="tree rollouts; `{}`: with the defaults, null: none")
    vllm: VLLMConfig = Field(default=VLLMConfig(), description="the engine of `backend: vllm`")

    @model_validator(mode="before")
    @classmethod
    def _short(cls, section: Any) -> Any:
        return expand_votes(section)

    @property
    def ranks_together(self) -> int:
        """How many ranks share an engine; the first of them samples for all."""
        return self.vllm.tensor_parallel if self.backend == "vllm" else 1

    @model_validator(mode="after")
    def _consistent(self) -> SamplingConfig:
        if self.train_rollouts > self.votes.max:
            raise ValueError(f"train_rollouts={self.train_rollouts} is more than votes={self.votes.max}: lower it")
        if self.top_p < 1.0:
            raise ValueError(
                f"top_p={self.top_p}: training samples with top_p 1, a nucleus biases the importance ratio "
                "(evaluation.top_p may be lower)"
            )
        return self


class MethodConfig(_Section):
    """The method and its options. A method may replace these defaults (`mm-spine methods` prints both)."""

    name: str = Field(default="spine", description="a method of `mm-spine methods`")
    share: Share = Field(default=0.2, description="share of the tokens that a mask selects")
    mask_rule: Literal["quantile", "top_k"] = Field(
        default="quantile",
        description="select every token at or above the quantile (ties included), or exactly ceil(share T)",
    )
    mask_scope: Literal["response", "batch"] = Field(
        default="response", description="take the threshold within each response, or over the whole step"
    )
    band_scope: Literal["response", "batch"] = Field(
        default="response", description="take the bounds within each response, or over the whole step"
    )
    band_anchor: Literal["running", "initial"] = Field(
        default="running", description="bounds from this step's entropies, or from the starting model's"
    )
    band_quantiles: tuple[Share, Share] = Field(
        default=(0.10, 0.50), description="lower and upper bound, as quantiles of the forking tokens' entropies"
    )
    band_low_weight: NonNegative = Field(default=0.01, description="weight of the hinge below the band")
    band_high_weight: NonNegative = Field(default=0.01, description="weight of the hinge above the band")
    advantage: Literal["group", "batch", "center"] = Field(
        default="group", description="(r - mean) / (std + eps) within the group or over the step; `center`: r - mean"
    )
    std: Literal["sample", "population"] = Field(default="sample", description="divide by n - 1 (verl, TRL) or by n")
    eps: Positive = Field(default=1e-6, description="added to the standard deviation")
    clip_low: NonNegative = Field(default=0.2, description="the importance ratio is clipped at 1 - clip_low")
    clip_high: NonNegative = Field(default=0.2, description="the importance ratio is clipped at 1 + clip_high")
    kl: Literal["none", "k3", "exact"] = Field(
        default="none", description="KL to the starting model: none, the k3 estimate, or exact over the vocabulary"
    )
    kl_weight: NonNegative = Field(default=0.01, description="weight of the KL term")
    policy_denominator: Denominator = Field(
        default="all",
        description="divide the policy term by all response tokens, or by the selected ones; `response`: divide each "
        "response by its own tokens, and average over responses",
    )
    band_denominator: Denominator = Field(default="all", description="the same choice for the band term")
    kl_denominator: Denominator = Field(default="selected", description="the same choice for the KL term")
    unanimous: Literal["skip", "regularise"] = Field(
        default="regularise",
        description="groups without advantage: keep their band and KL terms, or leave them out of these too",
    )
    unparsed_penalty: NonNegative = Field(
        default=7.0, description="`rent`: the reward of a response without an answer is minus this, in nats"
    )
    ear: Literal["adv_res", "adv_clip"] = Field(
        default="adv_res", description="`ttrl-ear`, `ettrl`: how entropy shapes the advantage"
    )

    @model_validator(mode="after")
    def _ordered(self) -> MethodConfig:
        if self.band_quantiles[0] >= self.band_quantiles[1]:
            raise ValueError(f"band_quantiles={list(self.band_quantiles)}: the first must be below the second")
        return self


class OptimConfig(_Section):
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


class EngineConfig(_Section):
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


class EvaluationConfig(DecodingConfig):
    """One greedy response and `samples` sampled ones for each question, before and after adaptation. `before` reuses
    the evaluation of another run with the same start.

    The tasks of `lmms_eval` are evaluated before, after, and every `lmms_eval_every` steps (0: not in between), on
    the first `lmms_eval_limit` items of each. `lmms_eval_tasks` is a folder of further tasks.
    """

    samples: Count = Field(default=16, description="sampled responses of each question, beside the greedy one")
    held_out: bool = Field(default=True, description="also evaluate the benchmark's held-out split")
    limit: Count | None = Field(default=None, description="only the first so many questions of each split")
    before: Path | None = Field(default=None, description="take the evaluation before from this finished run")
    lmms_eval: tuple[str, ...] = Field(default=(), description="tasks of lmms-eval")
    lmms_eval_every: Natural = Field(default=0, description="steps between evaluations on these tasks")
    lmms_eval_limit: Count | None = Field(default=None, description="only the first so many items of each task")
    lmms_eval_tasks: Path | None = Field(default=None, description="a folder of your own tasks")


class CheckpointConfig(_Section):
    """Checkpoints are written between steps: every `every` steps, with `auto` once ten minutes have passed since the
    last one, and always when a signal stops the run and before the last evaluation (0: only then). With a number of
    steps the newest stay in the folder of a finished run; otherwise they are removed when its results are written."""

    every: Interval = Field(default="auto", description="steps between checkpoints; `auto`: ten minutes")
    keep: Count = Field(default=2, description="how many of the newest are kept")


class CacheConfig(_Section):
    """Image features, kept in host memory and, with `folder`, in files that other runs and ranks use too. Without
    `folder` nothing outlives the run. No result depends on the cache."""

    memory_gb: NonNegative = Field(default=4.0, description="10^9 bytes of host memory for each process")
    folder: Path | None = Field(default=None, description="keep features in this folder, beyond the run")
    disk_gb: NonNegative = Field(default=50.0, description="10^9 bytes of files in that folder")


class ReportingConfig(_Section):
    """What a run writes beyond its figures. With `images` the report shows thumbnails of the questions whose answer
    changed; with `images: false` no image reaches the folder, the report or a table. `rollouts` keeps every response
    with its tokens.

    `trackers` receive every figure, and of each step `tracked_completions` responses with their images. Images go to
    another machine only with `send_images`.
    """

    images: bool = Field(default=True, description="thumbnails in the report, and images for trackers")
    rollouts: bool = Field(default=True, description="write `rollouts/`")
    completions: Natural = Field(default=0, description="responses of each step that are printed")
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = Field(
        default=(), description="experiment trackers that receive the curves"
    )
    tracked_completions: Natural = Field(default=8, description="responses of each step that trackers receive")
    send_images: bool = Field(default=False, description="send images to trackers on another machine too")


class RunConfig(_Section):
    """All settings of a run. `split` replaces the split that is adapted to; then no split is held out. `source` is a
    folder or hub id to read a benchmark's rows from, in place of its own. `prompt: short` asks for an answer without
    reasoning. `scope: question` starts again from the same weights for each question."""

    benchmark: str = Field(default="digits", description="a name of `mm-spine benchmarks`, or a folder of your own")
    split: str | None = Field(default=None, description="the split to adapt to")
    source: str | None = Field(default=None, description="where the rows are read")
    prompt: Literal["reason", "short"] = Field(
        default="reason", description="ask for reasoning first, or for the answer only"
    )
    model: ModelConfig = Field(default=ModelConfig(), description="which weights, and which of them train")
    method: MethodConfig = Field(default=MethodConfig(), description="reward, mask, band and KL")
    sampling: SamplingConfig = Field(default=SamplingConfig(), description="rollouts for training")
    optim: OptimConfig = Field(default=OptimConfig(), description="steps and AdamW")
    engine: EngineConfig = Field(default=EngineConfig(), description="DeepSpeed, micro-batches and the parity limit")
    evaluation: EvaluationConfig = Field(default=EvaluationConfig(), description="before and after the run")
    checkpoint: CheckpointConfig = Field(default=CheckpointConfig(), description="when a run can be resumed")
    cache: CacheConfig = Field(default=CacheConfig(), description="image features")
    reporting: ReportingConfig = Field(default=ReportingConfig(), description="what is written and shown")
    scope: Literal["dataset", "question"] = Field(
        default="dataset", description="one model for all questions, or one for each"
    )
    limit: Count | None = Field(default=None, description="only the first so many questions")
    seed: int = Field(default=0, description="seed of every draw")
    threads: Count | None = Field(default=None, description="threads of torch on a CPU")

    @property
    def offloads(self) -> bool:
        """Whether a GPU holds neither optimiser state nor KL anchor while it samples."""
        chosen = self.engine.offload_while_sampling
        return self.sampling.backend == "vllm" and self.engine.zero_stage < 3 if chosen is None else chosen
