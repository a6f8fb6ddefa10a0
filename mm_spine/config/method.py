"""Define the section of a configuration that holds the options of a method."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from mm_spine.config.values import Denominator, NonNegative, Positive, Section, Share


class MethodConfig(Section):
    """The method and the options that all methods have. A method may replace these defaults and have further options
    of its own; `mm-spine methods NAME` prints both."""

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
    truncate: Positive | None = Field(
        default=None,
        description="weight each token of the policy term by min(p / q, truncate), p its probability by the trainer "
        "and q by the sampler, before the step's update: corrects for a sampler of lower precision; null: no weights",
    )
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

    @property
    def kl_acts(self) -> bool:
        """Whether the loss has a KL term that moves the weights."""
        return self.kl != "none" and self.kl_weight > 0

    @model_validator(mode="after")
    def _ordered(self) -> MethodConfig:
        if self.band_quantiles[0] >= self.band_quantiles[1]:
            raise ValueError(f"band_quantiles={list(self.band_quantiles)}: the first must be below the second")
        return self
