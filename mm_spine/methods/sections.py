"""The options that only some methods have: a row's `section` is one of these classes. Nothing here imports torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mm_spine.config import MethodConfig, NonNegative


class EarConfig(MethodConfig):
    """ETTRL's entropy-shaped advantages (arXiv 2508.11356)."""

    ear: Literal["adv_res", "adv_clip"] = Field(default="adv_res", description="how entropy shapes the advantage")


class RentConfig(MethodConfig):
    """RENT's reward."""

    unparsed_penalty: NonNegative = Field(
        default=7.0, description="the reward of a response without an answer is minus this, in nats"
    )
