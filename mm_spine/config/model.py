"""Define the sections of a configuration that say which weights train."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from mm_spine.config.values import Count, Section


class LoraConfig(Section):
    """Low-rank adapters on the language model's projections (peft)."""

    rank: Count = Field(default=16, description="rank of an adapter")
    alpha: Count = Field(default=32, description="an adapter's output is multiplied by alpha / rank")


class ModelConfig(Section):
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
        default=None,
        description="smaller images are enlarged to this many pixels; null: the processor's value (Qwen families only)",
    )
    max_pixels: Count | None = Field(
        default=None,
        description="larger images are reduced to this many pixels; null: the processor's value (Qwen families and "
        "InternVL, whose tiles count)",
    )

    @model_validator(mode="after")
    def _budget(self) -> ModelConfig:
        if self.min_pixels is not None and self.max_pixels is not None and self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels={self.min_pixels} is more than max_pixels={self.max_pixels}: swap them")
        return self
