"""The methods: rows of pure functions. A new one is a function and a row here, never an `if` in the loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mm_spine.config import ConfigError, MethodConfig, RunConfig
from mm_spine.config_layers import build, expand_layer, merge
from mm_spine.draws import uniforms
from mm_spine.methods import credit, weights
from mm_spine.methods.weights import BoundsRule, MaskRule
from mm_spine.types import Reward, Rollout
from mm_spine.words import nearest

Signal = Callable[[Rollout, int, int], Tensor]
"""(rollout, seed, step) -> what a mask ranks tokens by, shape (T,)."""

Shape = Callable[[Tensor, Tensor], Tensor]
"""(advantages_N, mean_entropy_N) -> advantages_N."""


def token_entropy(rollout: Rollout, seed: int, step: int) -> Tensor:
    """The exact token entropies, nats."""
    return torch.from_numpy(rollout.entropy)


def random_draw(rollout: Rollout, seed: int, step: int) -> Tensor:
    """Uniform draws in place of entropies: a random mask of the same share."""
    return torch.from_numpy(uniforms(len(rollout.token_ids), seed, "mask", step, rollout.question_id, rollout.index))


def all_tokens(options: MethodConfig) -> MaskRule:
    """Every response token."""
    return weights.everything


def top_share(options: MethodConfig) -> MaskRule:
    """The `share` of tokens with the highest signal: a quantile with its ties, or exactly ceil(share T)."""
    rules = {"quantile": weights.top_quantile, "top_k": weights.top_k}
    return partial(rules[options.mask_rule], share=options.share)


def lowest_share(options: MethodConfig) -> MaskRule:
    """The `share` of tokens with the lowest signal, ties kept."""
    return partial(weights.lowest, share=options.share)


def exact_share(options: MethodConfig) -> MaskRule:
    """Exactly ceil(share T) tokens of the highest signal."""
    return partial(weights.top_k, share=options.share)


def otsu_split(options: MethodConfig) -> MaskRule:
    """The upper side of Otsu's threshold."""
    return weights.otsu


def quantile_band(options: MethodConfig) -> BoundsRule:
    """SPINE v1's bounds."""
    low, high = options.band_quantiles
    return partial(weights.quantile_bounds, low=low, high=high)


def median_band(options: MethodConfig) -> BoundsRule:
    """SPINE v2's bounds."""
    return weights.median_mad_bounds


def majority(options: MethodConfig) -> Reward:
    """TTRL's reward."""
    return credit.majority_reward


def negative_entropy(options: MethodConfig) -> Reward:
    """RENT's reward."""
    return credit.entropy_reward(options.unparsed_penalty)


def from_labels(options: MethodConfig) -> Reward:
    """A place that only `run`, under --allow-labels, may fill (`evaluation.oracle_reward`)."""
    raise ConfigError("method=oracle reads the labels: it is a control; start it with --allow-labels")


def unshaped(options: MethodConfig) -> Shape:
    """Advantages as they are."""
    return lambda advantages_N, mean_entropy_N: advantages_N


def entropy_shaped(options: MethodConfig) -> Shape:
    """ETTRL's EAR: Adv-Res or Adv-Clip, by `method.ear`."""
    shapes: dict[str, Shape] = {
        "adv_res": credit.adv_res,
        "adv_clip": lambda advantages_N, mean_entropy_N: credit.adv_clip(advantages_N),
    }
    return shapes[options.ear]


@dataclass(frozen=True)
class Method:
    """One method. Each choice is a function of the options; `options` are this method's defaults of them, `sampling`
    those of that section."""

    summary: str
    source: str
    reward: Callable[[MethodConfig], Reward] = majority
    shape: Callable[[MethodConfig], Shape] = unshaped
    signal: Signal = token_entropy
    policy_mask: Callable[[MethodConfig], MaskRule] = all_tokens
    band_mask: Callable[[MethodConfig], MaskRule] = top_share
    bounds: Callable[[MethodConfig], BoundsRule] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    sampling: Mapping[str, Any] = field(default_factory=dict)
    trains: bool = True
    label_free: bool = True


TTRL = "arXiv 2504.16084"
SPINE = "arXiv 2511.17938"
_TTRL = {"kl": "k3", "kl_weight": 0.001}
_SPINE = {"kl": "exact", "kl_weight": 0.01}

METHODS: Mapping[str, Method] = {
    "none": Method("no adaptation: the base model and its vote", "-", trains=False),
    "ttrl": Method("majority reward, all tokens", TTRL, options=_TTRL),
    "ttrl-ear": Method(
        "ttrl with entropy-shaped advantages (method.ear: adv_res | adv_clip)",
        "arXiv 2508.11356",
        shape=entropy_shaped,
        options={**_TTRL, "std": "population"},
    ),
    "ettrl": Method(
        "tree rollouts (ETMR) with entropy-shaped advantages (method.ear: adv_res | adv_clip)",
        "arXiv 2508.11356",
        shape=entropy_shaped,
        options={**_TTRL, "std": "population"},
        sampling={"tree": {}},
    ),
    "rent": Method("reward of low entropy instead of a vote", "RENT", reward=negative_entropy),
    "spine": Method(
        "forking tokens (top 20 % entropy) with a quantile band (v1)",
        SPINE,
        policy_mask=top_share,
        bounds=quantile_band,
        options=_SPINE,
    ),
    "spine-v2": Method(
        "forking tokens (Otsu) with a median/MAD band (v2)",
        SPINE,
        policy_mask=otsu_split,
        band_mask=otsu_split,
        bounds=median_band,
        options=_SPINE,
    ),
    "forks-only": Method("control: spine without the band", SPINE, policy_mask=top_share, options=_SPINE),
    "band-only": Method(
        "control: spine's band on the forks, policy term on all tokens", SPINE, bounds=quantile_band, options=_SPINE
    ),
    "random-mask": Method(
        "control: spine's share of tokens at random, no band",
        SPINE,
        signal=random_draw,
        policy_mask=exact_share,
        options=_SPINE,
    ),
    "low-entropy-mask": Method(
        "control: the 80 % of tokens with the lowest entropy, no band",
        "arXiv 2506.01939",
        policy_mask=lowest_share,
        options={**_SPINE, "share": 0.8},
    ),
    "oracle": Method(
        "control: ttrl with the true labels as reward (--allow-labels)",
        TTRL,
        reward=from_labels,
        options=_TTRL,
        label_free=False,
    ),
}


def find(name: str) -> Method:
    """The row of that name. Raises ConfigError with the nearest valid one."""
    if name not in METHODS:
        raise ConfigError(f"method={name!r}: no such method; {nearest(name, METHODS)}")
    return METHODS[name]


def configure(*layers: Mapping[str, Any]) -> RunConfig:
    """The layers over the method's own options, validated; later layers win. Raises ConfigError."""
    merged: dict[str, Any] = {}
    for layer in layers:
        merged = merge(merged, expand_layer(layer))
    section = merged.get("method")
    name = section.get("name", "spine") if isinstance(section, Mapping) else "spine"
    row = find(str(name))
    return build({"method": dict(row.options), "sampling": dict(row.sampling)}, merged)
