"""Define the configuration of a run: one tree of validated, frozen sections.

`mm_spine.config.layers` builds the tree from YAML and overrides. docs/config.md is printed from the docstrings and
field descriptions of these modules, by scripts/write_config_docs.py.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, SerializeAsAny, ValidationInfo, field_validator
from pydantic import ValidatorFunctionWrapHandler as Handler

from mm_spine.config.guard import GuardConfig
from mm_spine.config.method import MethodConfig
from mm_spine.config.model import LoraConfig, ModelConfig
from mm_spine.config.prompt import PromptConfig
from mm_spine.config.results import EvaluationConfig, ReportingConfig
from mm_spine.config.sampling import (
    DecodingConfig,
    RegenerateConfig,
    SamplingConfig,
    TreeConfig,
    VLLMConfig,
    VotesConfig,
)
from mm_spine.config.training import CacheConfig, CheckpointConfig, EngineConfig, OptimConfig
from mm_spine.config.values import (
    BelowOne,
    ConfigError,
    Count,
    Denominator,
    NonNegative,
    Positive,
    RunStopped,
    Section,
    Share,
    expand_prompt,
    expand_votes,
)

__all__ = [
    "BelowOne",
    "CacheConfig",
    "CheckpointConfig",
    "ConfigError",
    "Count",
    "DecodingConfig",
    "Denominator",
    "EngineConfig",
    "EvaluationConfig",
    "GuardConfig",
    "LoraConfig",
    "MethodConfig",
    "ModelConfig",
    "NonNegative",
    "OptimConfig",
    "Positive",
    "PromptConfig",
    "RegenerateConfig",
    "ReportingConfig",
    "RunConfig",
    "RunStopped",
    "SamplingConfig",
    "Section",
    "Share",
    "TreeConfig",
    "VLLMConfig",
    "VotesConfig",
    "expand_prompt",
    "expand_votes",
]


class RunConfig(Section):
    """All settings of a run. `split` replaces the split that is adapted to; then no split is held out. `source` is a
    folder or hub id to read a benchmark's rows from, in place of its own. `scope: question` starts again from the same
    weights for each question."""

    version: Literal[2] = Field(
        default=2, description="form of this tree; `mm_spine/config/versions.py` converts files of older forms"
    )
    benchmark: str = Field(default="digits", description="a name of `mm-spine benchmarks`, or a folder of your own")
    split: str | None = Field(default=None, description="the split to adapt to")
    source: str | None = Field(default=None, description="where the rows are read")
    prompt: PromptConfig = Field(default=PromptConfig(), description="how questions are put to the model")
    model: ModelConfig = Field(default=ModelConfig(), description="which weights, and which of them train")
    # Typed by what it holds: a method's own options are written out too.
    method: SerializeAsAny[MethodConfig] = Field(default=MethodConfig(), description="reward, mask, band and KL")
    sampling: SamplingConfig = Field(default=SamplingConfig(), description="rollouts for training")
    optim: OptimConfig = Field(default=OptimConfig(), description="steps and AdamW")
    engine: EngineConfig = Field(default=EngineConfig(), description="DeepSpeed, micro-batches and the parity limit")
    guard: GuardConfig = Field(default=GuardConfig(), description="when a run is stopped for getting worse")
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

    @field_validator("method", mode="wrap")
    @classmethod
    def _of_its_type(cls, value: Any, validate: Handler, info: ValidationInfo) -> MethodConfig:
        """Validate the options of a method as the type that `config.layers.build` gives as context."""
        method: type[MethodConfig] = (info.context or {}).get("method", MethodConfig)
        found: MethodConfig = validate(value) if isinstance(value, MethodConfig) else method.model_validate(value)
        return found

    @property
    def offloads(self) -> bool:
        """Whether a GPU holds neither optimiser state nor KL anchor while it samples."""
        chosen = self.engine.offload_while_sampling
        return self.sampling.backend == "vllm" and self.engine.zero_stage < 3 if chosen is None else chosen
