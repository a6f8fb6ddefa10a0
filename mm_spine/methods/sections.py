"""The options that only some methods have: a row's `section` is one of these classes. Nothing here imports torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from mm_spine.config import BelowOne, Count, MethodConfig, NonNegative, Positive, Share
from mm_spine.config.values import Natural, UpToOne


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


class TtrvConfig(MethodConfig):
    """TTRV's reward (arXiv 2510.06783)."""

    alpha: NonNegative = Field(
        default=0.75, description="weight of the answers' entropy; acts only with method.advantage=batch"
    )


class EmRlConfig(MethodConfig):
    """EM-RL's reward (arXiv 2505.15134)."""

    level: Literal["token", "sequence"] = Field(
        default="token", description="reward minus the token entropies, or the log-probability of the response"
    )
    over_tokens: Literal["mean", "sum"] = Field(
        default="mean", description="their mean over the response, or their sum"
    )


class ScrlConfig(MethodConfig):
    """SCRL's labels and rewards (arXiv 2603.19880)."""

    consensus: Share = Field(default=0.375, description="least share of the votes that makes the winner a label")
    margin: BelowOne = Field(default=0.125, description="the winner's lead over the second must exceed this share")
    rare: UpToOne = Field(default=0.125, description="an answer with a smaller share of the votes may be punished")
    label_reward: Literal["continuous", "binary"] = Field(
        default="continuous", description="rewards by the share of the votes, or 1 and -1"
    )
    gap_weight: NonNegative = Field(
        default=0.1, description="continuous rewards: weight of an answer's entropy beyond that of the question, nats"
    )


class DareConfig(MethodConfig):
    """DARE's reward (arXiv 2601.21804)."""

    bonus: UpToOne = Field(default=0.1, description="weight of the bonus for rare answers of sure responses")
    prune: BelowOne = Field(default=0.05, description="an answer of a smaller probability is left out")
    uncertainty_eps: Positive = Field(default=1e-6, description="added to an answer's entropy, nats")


class CopoConfig(MethodConfig):
    """COPO's mixture of advantages (arXiv 2508.04138)."""

    steepness: Positive = Field(
        default=20.0, description="how fast the weight grows with the answers' entropy, per bit"
    )
    middle: NonNegative = Field(default=1.5, description="entropy of the answers at which the weight is 1/2, bits")


class RiskConfig(MethodConfig):
    """RiskPO's risk measure (arXiv 2510.00911)."""

    bundle: Count = Field(default=5, description="questions whose rewards are added up")
    lower: float = Field(default=0.2, gt=0, lt=0.5, description="level of the lower quantile of a bundle's score")
    upper: float = Field(default=0.9, ge=0.5, lt=1, description="level of the upper quantile")
    tail_weight: NonNegative = Field(default=1.5, description="weight of the part below the lower quantile")


class ArmConfig(MethodConfig):
    """ProGRPO's advantages (arXiv 2602.05281)."""

    level_weight: NonNegative = Field(default=0.3, description="weight of the difference in confidence")
    least: Share = Field(default=0.2, description="share of the least likely tokens that confidence is measured at")


class PearConfig(MethodConfig):
    """PEAR's reward (arXiv 2510.08026)."""

    answer_entropy: NonNegative = Field(
        default=1.0, description="how much entropy after the thinking makes up for entropy within it"
    )


class PacsConfig(MethodConfig):
    """PACS' score (arXiv 2509.02522)."""

    beta: Positive = Field(default=1.0, description="weight of a response's log-ratio in its score")


class RealConfig(MethodConfig):
    """REAL's temperature (arXiv 2602.05630)."""

    tau: Positive = Field(default=0.5, description="temperature of the mean log-ratio of a response")


class EntrocraftConfig(MethodConfig):
    """Entrocraft's range of the entropy (arXiv 2604.26326), in units of the first step's mean token entropy."""

    entropy_range: tuple[NonNegative, NonNegative] = Field(
        default=(0.9, 1.1),
        description="below and above it responses are left out, in units of the first step's entropy",
    )
    entropy_range_end: tuple[NonNegative, NonNegative] = Field(
        default=(0.15, 0.3), description="the range after `anneal_steps`"
    )
    anneal_steps: Natural = Field(default=0, description="steps in which the range moves to its end; 0: it stays")

    @model_validator(mode="after")
    def _in_order(self) -> EntrocraftConfig:
        for key in ("entropy_range", "entropy_range_end"):
            low, high = getattr(self, key)
            if low > high:
                raise ValueError(f"{key}={[low, high]}: the first must not be above the second")
        return self


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


class HapoConfig(MethodConfig):
    """HAPO, which scales both clipping limits."""

    clip_low: Positive = Field(default=0.2, description=MethodConfig.model_fields["clip_low"].description)
    clip_high: Positive = Field(default=0.28, description=MethodConfig.model_fields["clip_high"].description)


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


class LikelihoodConfig(MethodConfig):
    """The likelihood of the voted answer as the reward."""

    likelihood: Literal["log_prob", "mean_prob"] = Field(
        default="log_prob", description="log-probability of the voted answer, or the mean probability of its tokens"
    )
    floor: NonNegative = Field(
        default=7.0, description="least log-probability as a reward is minus this, in nats; also without an answer"
    )


class ClipConfig(MethodConfig):
    """CLIP's similarity of image and answer as the reward."""

    clip: Path | None = Field(default=None, description="folder of a CLIP model and its processor (transformers)")
    clip_text: Literal["answer", "response"] = Field(
        default="answer", description="what CLIP reads: the parsed answer, or the response up to CLIP's limit"
    )
