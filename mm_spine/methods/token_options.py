"""The options that only the rows of `rows_tokens` have: the section of each row. Nothing here imports torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mm_spine.config import MethodConfig
from mm_spine.config.values import NonNegative, Positive, Share


class ClipCovConfig(MethodConfig):
    """Clip-Cov."""

    cov_share: Share = Field(default=2e-4, description="share of all tokens that the rule is for, at least one token")
    cov_low: NonNegative = Field(default=1.0, description="tokens with a covariance above this may be left out")
    cov_high: Positive = Field(default=5.0, description="tokens with a covariance below this may be left out")


class KlCovConfig(MethodConfig):
    """KL-Cov."""

    cov_share: Share = Field(default=2e-3, description="share of all tokens that the rule is for, at least one token")
    cov_weight: NonNegative = Field(default=1.0, description="weight of the penalty")


class SteerConfig(MethodConfig):
    """STEER's weights."""

    weight_least: NonNegative = Field(default=0.8, description="weight of the token whose entropy changes most")
    weight_most: NonNegative = Field(default=1.2, description="weight of the token whose entropy changes least")


class EmpgConfig(MethodConfig):
    """EMPG's modulation."""

    sharpness: NonNegative = Field(default=1.0, description="how fast a token's weight falls with its entropy")
    clarity: NonNegative = Field(default=0.1, description="weight of the bonus for a certain next token")


_COMMON = MethodConfig.model_fields


class HapoConfig(MethodConfig):
    """HAPO, which scales both clipping limits."""

    clip_low: Positive = Field(default=0.2, description=_COMMON["clip_low"].description)
    clip_high: Positive = Field(default=0.28, description=_COMMON["clip_high"].description)


class LpRegConfig(MethodConfig):
    """Lp-Reg's regulariser."""

    least_likely: Share = Field(
        default=0.01, description="share of the tokens of negative advantage that are regularised, at least one token"
    )
    min_p: Share = Field(
        default=0.02, description="the proxy lacks tokens less probable than this times the most probable one"
    )
    proxy_weight: NonNegative = Field(default=1.0, description="weight of the KL to the proxy")
    proxy_kl: Literal["exact", "k3"] = Field(
        default="exact", description="that KL over the vocabulary, or its k3 estimate at the token drawn"
    )


class UcasConfig(MethodConfig):
    """UCAS's shaping."""

    certain_right: NonNegative = Field(default=0.25, description="how much certainty lessens a positive advantage")
    certain_wrong: NonNegative = Field(default=0.35, description="how much certainty enlarges a negative advantage")
    logit_penalty: NonNegative = Field(default=0.05, description="what the surest token's advantage is lessened by")


class ShapingConfig(MethodConfig):
    """The two shapings of arXiv 2508.02260."""

    shaping: Literal["perplexity", "position"] = Field(default="perplexity", description="what shapes the advantages")
    perplexity_weight: NonNegative = Field(default=0.1, description="how much a standard deviation lessens A")
    position_weight: NonNegative = Field(default=0.1, description="what the last token's advantage grows by")
