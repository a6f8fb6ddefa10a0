"""The options that only some methods have: a row's `section` is one of these classes. Nothing here imports torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from mm_spine.config import BelowOne, Count, MethodConfig, NonNegative, Positive, Share


class EarConfig(MethodConfig):
    """ETTRL's entropy-shaped advantages (arXiv 2508.11356)."""

    ear: Literal["adv_res", "adv_clip"] = Field(default="adv_res", description="how entropy shapes the advantage")


class RentConfig(MethodConfig):
    """RENT's reward."""

    unparsed_penalty: NonNegative = Field(
        default=7.0, description="the reward of a response without an answer is minus this, in nats"
    )


class EntropyConfig(MethodConfig):
    """A bonus for entropy."""

    entropy_weight: NonNegative = Field(default=0.001, description="the loss falls by this times the mean entropy")


class EpoConfig(EntropyConfig):
    """EPO's corridor around the running mean of the entropy (arXiv 2509.22576)."""

    entropy_low: NonNegative = Field(default=0.8, description="lower bound, times the running mean of the entropy")
    entropy_high: Positive = Field(default=1.2, description="upper bound, times the running mean of the entropy")

    @model_validator(mode="after")
    def _corridor(self) -> EpoConfig:
        if self.entropy_low >= self.entropy_high:
            raise ValueError(f"entropy_low={self.entropy_low}: must be below entropy_high={self.entropy_high}")
        return self


class T1Config(EntropyConfig):
    """T1's moving anchor (arXiv 2501.11651)."""

    anchor_weight: NonNegative = Field(default=0.001, description="weight of the KL to the moving anchor")
    anchor_decay: BelowOne = Field(
        default=0.99,
        description="after each step's update, the anchor's weights become anchor_decay times themselves plus "
        "1 - anchor_decay times the policy's",
    )


class TeaConfig(MethodConfig):
    """Light-IF's weights of the entropy (arXiv 2508.03178)."""

    tea_scale: NonNegative = Field(default=10.0, description="sum of the weights of a response's tokens, uncapped")
    tea_cap: Positive = Field(default=5.0, description="the most that the entropy of one token weighs")


class SirenConfig(MethodConfig):
    """SIREN's penalty (arXiv 2509.25133)."""

    siren_weight: NonNegative = Field(default=0.005, description="weight of the squared distance from the first mean")
    siren_top_p: Share = Field(default=0.8, description="probability of the tokens that the masked entropy is of")


class R3Config(MethodConfig):
    """R3's replay (arXiv 2601.19620)."""

    replay_count: Count = Field(default=2, description="earlier responses that a unanimous group gets, at most")
    replay_kept: Count = Field(default=4, description="responses that are kept of each question, the latest")
    replay_scale: Positive = Field(
        default=1.0, description="scale of the standard deviation in groups with earlier responses"
    )
