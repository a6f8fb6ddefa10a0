"""One validated config tree. YAML in, dotted overrides on top; errors name the key and the nearest valid one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError, model_validator

from mm_spine.words import nearest

Share = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Votes = Annotated[int, Field(ge=2)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]


def _number_or_auto(value: Any) -> Any:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise ValueError("a number of tokens, 1 or more, or auto")


def _votes_spelled_out(section: Any) -> Any:
    """`votes: 64` -> `votes: {max: 64}`, so that layers merge key by key."""
    votes = section.get("votes") if isinstance(section, Mapping) else None
    return {**section, "votes": {"max": votes}} if votes is not None and not isinstance(votes, Mapping) else section


Budget = Annotated[int | Literal["auto"], PlainValidator(_number_or_auto)]


class ConfigError(ValueError):
    """A wrong configuration. Raised before any model loads; the message names the key."""


class RunStopped(RuntimeError):
    """A run that cannot go on as it is. The message says what was found and what to do."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class LoraConfig(_Section):
    """Low-rank adapters on the language model's projections (peft)."""

    rank: Count = 16
    alpha: Count = 32


class ModelConfig(_Section):
    """Which weights, in which type, and what of them trains. The vision tower never does, its merger if asked."""

    path: str | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    train: Literal["full", "lora"] = "full"
    lora: LoraConfig = LoraConfig()
    train_merger: bool = False
    min_pixels: Count | None = None
    max_pixels: Count | None = None

    @model_validator(mode="after")
    def _budget(self) -> ModelConfig:
        if self.min_pixels is not None and self.max_pixels is not None and self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels={self.min_pixels} is more than max_pixels={self.max_pixels}: swap them")
        return self


class DecodingConfig(_Section):
    """How tokens are drawn. `batch_rows` bounds the rollouts decoded together, `kv_cache_gb` (10^9 bytes) the keys and
    values held for them."""

    temperature: Positive = 1.0
    top_p: Share = 1.0
    max_new_tokens: Count = 64
    batch_rows: Count = 512
    kv_cache_gb: Positive = 4.0


class VotesConfig(_Section):
    """At most `max` rollouts vote on a question; `votes: 64` is short for `votes: {max: 64}`.

    `stop: decided` ends a question once no outcome of the remaining rollouts can change its winner, `confident` once
    the posterior that the leader is the mode exceeds `level`. Both look first after as many rollouts as train, or as a
    unanimous vote takes, then after `round` further ones each: fewer spare more tokens and prefill prompts more often.
    """

    max: Votes = 16
    stop: Literal["never", "decided", "confident"] = "never"
    level: BelowOne = 0.95
    round: Count = 2


class TreeConfig(_Section):
    """ETMR's tree rollouts (arXiv 2508.11356): each root forks at `forks` of its tokens, `branches` times at each.

    The votes are the leaves: 1 + branches x forks a tree, the rest of the votes flat. `rank_by` says what a fork token
    has most of: surprisal -log pi (Algorithm 1) or entropy. `distinct` draws other tokens at a fork than those there.
    """

    forks: Count = 2
    branches: Count = 2
    rank_by: Literal["surprisal", "entropy"] = "surprisal"
    distinct: bool = False


class VLLMConfig(_Section):
    """The vLLM engine. `tensor_parallel` GPUs share one; `memory_share` is what it may take of a card, weights
    included, `kv_cache_gb` (2^30 bytes) its keys and values on a CPU, `max_rows` the responses decoded at once. With
    `own_process` its model runs beside the trainer's process, as it does on several GPUs or ranks."""

    tensor_parallel: Count = 1
    memory_share: Share = 0.45
    kv_cache_gb: Count = 1
    max_rows: Count = 256
    enforce_eager: bool = False
    own_process: bool = False


class SamplingConfig(DecodingConfig):
    """Rollouts for training: vote with `votes`, train on the first `train_rollouts` of them."""

    backend: Literal["hf", "vllm"] = "hf"
    votes: VotesConfig = VotesConfig()
    train_rollouts: Count = 16
    tree: TreeConfig | None = None
    vllm: VLLMConfig = VLLMConfig()

    @model_validator(mode="before")
    @classmethod
    def _short(cls, section: Any) -> Any:
        return _votes_spelled_out(section)

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
    """The method's options; a method's own row replaces these defaults (`mm-spine methods` prints both)."""

    name: str = "spine"
    share: Share = 0.2
    mask_rule: Literal["quantile", "top_k"] = "quantile"
    mask_scope: Literal["response", "batch"] = "response"
    band_scope: Literal["response", "batch"] = "response"
    band_anchor: Literal["running", "initial"] = "running"
    band_quantiles: tuple[Share, Share] = (0.10, 0.50)
    band_low_weight: NonNegative = 0.01
    band_high_weight: NonNegative = 0.01
    advantage: Literal["group", "batch", "center"] = "group"
    std: Literal["sample", "population"] = "sample"
    eps: Positive = 1e-6
    clip_low: NonNegative = 0.2
    clip_high: NonNegative = 0.2
    kl: Literal["none", "k3", "exact"] = "none"
    kl_weight: NonNegative = 0.01
    policy_denominator: Literal["all", "selected"] = "all"
    band_denominator: Literal["all", "selected"] = "all"
    kl_denominator: Literal["all", "selected"] = "selected"
    unanimous: Literal["skip", "regularise"] = "skip"
    unparsed_penalty: NonNegative = 7.0
    ear: Literal["adv_res", "adv_clip"] = "adv_res"

    @model_validator(mode="after")
    def _ordered(self) -> MethodConfig:
        if self.band_quantiles[0] >= self.band_quantiles[1]:
            raise ValueError(f"band_quantiles={list(self.band_quantiles)}: the first must be below the second")
        return self


class OptimConfig(_Section):
    """AdamW. `steps` rollout batches of `questions_per_step`, each used for `epochs` optimiser steps."""

    steps: Count = 12
    questions_per_step: Count = 32
    epochs: Count = 1
    lr: Positive = 1e-6
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup: BelowOne = 0.0
    weight_decay: NonNegative = 0.0
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.999)
    grad_clip: NonNegative = 1.0


class EngineConfig(_Section):
    """DeepSpeed. `token_budget` bounds the packed tokens of a micro-batch; a group is never split. `auto` asks a card
    what fits before step 1. `checkpoint_activations` recomputes a layer's activations instead of keeping them.
    `parity_limit` (nats) bounds the mean gap between the sampler's log-probs and the trainer's; unless given 0.01 in
    float32, 0.1 in bfloat16, which are ours."""

    zero_stage: Literal[0, 1, 2, 3] = 0
    token_budget: Budget = 8192
    checkpoint_activations: bool = False
    deepspeed: Path | None = None
    parity_limit: Positive | None = None
    measure_update: bool = False


class EvaluationConfig(DecodingConfig):
    """Greedy, and `samples` samples a question. `before` reuses another run's evaluation of the same start.

    `lmms_eval` names lmms-eval's tasks, evaluated before, after, and every `lmms_eval_every` steps (0: not between),
    the first `lmms_eval_limit` items of each; `lmms_eval_tasks` is a folder of further tasks.
    """

    samples: Count = 16
    held_out: bool = True
    limit: Count | None = None
    before: Path | None = None
    lmms_eval: tuple[str, ...] = ()
    lmms_eval_every: Natural = 0
    lmms_eval_limit: Count | None = None
    lmms_eval_tasks: Path | None = None


class CheckpointConfig(_Section):
    """Checkpoints fall on step boundaries, every `every` steps (0: only when stopped early)."""

    every: Natural = 0
    keep: Count = 2


class CacheConfig(_Section):
    """Image features. `memory_gb` (10^9 bytes) of host memory for each process; with `folder`, `disk_gb` of files
    there as well, which other runs and ranks use too. Without it nothing outlives the run. No result depends on it."""

    memory_gb: NonNegative = 4.0
    folder: Path | None = None
    disk_gb: NonNegative = 50.0


class ReportingConfig(_Section):
    """What a run writes beyond its figures. `images`: thumbnails of the questions whose answer changed, for the report;
    with `images: false` no image reaches folder, report or table. `rollouts`: every response with its tokens.

    `completions`: how many of a step's responses are printed. `trackers` are told every figure, and of each step
    `tracked_completions` responses with their images; to another machine images go with `send_images` alone.
    """

    images: bool = True
    rollouts: bool = True
    completions: Natural = 0
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    tracked_completions: Natural = 8
    send_images: bool = False


class RunConfig(_Section):
    """Everything a run needs to know. `split` replaces the split that is adapted to, and then nothing is held out;
    `source` is where a benchmark's rows are read instead of its hub id, a folder or another id; `prompt: short`
    asks for an answer without reasoning; `scope: question` starts from the same weights for each question."""

    benchmark: str = "digits"
    split: str | None = None
    source: str | None = None
    prompt: Literal["reason", "short"] = "reason"
    model: ModelConfig = ModelConfig()
    method: MethodConfig = MethodConfig()
    sampling: SamplingConfig = SamplingConfig()
    optim: OptimConfig = OptimConfig()
    engine: EngineConfig = EngineConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    cache: CacheConfig = CacheConfig()
    reporting: ReportingConfig = ReportingConfig()
    scope: Literal["dataset", "question"] = "dataset"
    limit: Count | None = None
    seed: int = 0
    threads: Count | None = None


def spelled_out(layer: Mapping[str, Any]) -> dict[str, Any]:
    """A layer with its short forms written out: `method: ttrl`, `sampling: {votes: 64}`."""
    found = dict(layer)
    if isinstance(layer.get("method"), str):
        found["method"] = {"name": layer["method"]}
    if "sampling" in layer:
        found["sampling"] = _votes_spelled_out(layer["sampling"])
    return found


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings, the second winning."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file as a mapping, safe-loaded. Raises ConfigError naming the file."""
    try:
        loaded = yaml.safe_load(path.read_text())
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {error}") from error
    if loaded is None:
        return {}
    if not isinstance(loaded, Mapping):
        raise ConfigError(f"{path}: expected keys and values, found {type(loaded).__name__}")
    return dict(loaded)


def parse_overrides(pairs: Iterable[str]) -> dict[str, Any]:
    """["optim.lr=1e-4", ...] -> a nested mapping, values read as YAML scalars (1e-4 too), short forms written out."""
    tree: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise ConfigError(f"{pair!r}: overrides are written key=value, as in optim.lr=1e-4")
        try:
            nested: Any = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"{pair!r}: the value cannot be read as YAML: {error}") from error
        for part in reversed(key.split(".")):
            nested = {part: nested}
        tree = merge(tree, spelled_out(nested))
    return tree


def build(*layers: Mapping[str, Any]) -> RunConfig:
    """Validate the layers, later ones winning. Raises ConfigError with one line per wrong key."""
    merged: dict[str, Any] = {}
    for layer in layers:
        merged = merge(merged, spelled_out(layer))
    try:
        return RunConfig.model_validate(merged)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(e) for e in error.errors())) from error


def _explain(error: Any) -> str:
    location = [str(part) for part in error["loc"]]
    key = ".".join(location)
    if error["type"] == "extra_forbidden":
        return f"{key}: no such key; {nearest(location[-1], _keys(location[:-1]))}"
    found = "" if isinstance(error["input"], Mapping) else f"={error['input']!r}"
    return f"{key}{found}: {error['msg'].removeprefix('Value error, ')}"


def _keys(location: list[str]) -> list[str]:
    section: Any = RunConfig
    for part in location:
        section = section.model_fields[part].annotation
        section = next((a for a in get_args(section) if isinstance(a, type)), section)
    return list(section.model_fields)
