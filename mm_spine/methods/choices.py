"""What a row of the table may choose: each function turns a method's options into one rule of it.

The rules themselves are the tensor code of `rewards`, `credit`, `weights` and `band`. It is imported when a rule is
made, because importing torch takes seconds and `mm-spine methods` only lists the rows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from mm_spine.config import ConfigError, MethodConfig
from mm_spine.methods.sections import RentConfig

if TYPE_CHECKING:
    from torch import Tensor

    from mm_spine.methods.band import BoundsRule
    from mm_spine.methods.weights import MaskRule
    from mm_spine.types import Reward, Rollout

Signal = Callable[["Rollout", int, int], "Tensor"]
"""(rollout, seed, step) -> what a mask ranks tokens by, shape (T,)."""


# Rewards.


def majority(options: MethodConfig) -> Reward:
    """Reward agreement with the vote (TTRL)."""
    from mm_spine.methods.rewards import majority_reward

    return majority_reward


def negative_entropy(options: RentConfig) -> Reward:
    """Reward low entropy (RENT)."""
    from mm_spine.methods.rewards import entropy_reward

    return entropy_reward(options.unparsed_penalty)


def from_labels(options: MethodConfig) -> Reward:
    """Raise ConfigError: a run under --allow-labels replaces this by `evaluation.oracle_reward`."""
    raise ConfigError("method=oracle reads the labels: it is a control; start it with --allow-labels")


# What tokens are ranked by.


def token_position(rollout: Rollout, seed: int, step: int) -> Tensor:
    """Rank tokens by their position: for masks that select every token."""
    import torch

    return torch.arange(len(rollout.token_ids), dtype=torch.float32)


def token_entropy(rollout: Rollout, seed: int, step: int) -> Tensor:
    """Rank tokens by their exact entropies, nats."""
    import torch

    return torch.from_numpy(rollout.entropy)


def random_draw(rollout: Rollout, seed: int, step: int) -> Tensor:
    """Rank tokens by uniform draws: a random mask of the same share."""
    import torch

    from mm_spine.draws import uniforms

    return torch.from_numpy(uniforms(len(rollout.token_ids), seed, "mask", step, rollout.question_id, rollout.index))


# Token masks.


def all_tokens(options: MethodConfig) -> MaskRule:
    """Select every response token."""
    from mm_spine.methods import weights

    return weights.everything


def top_share(options: MethodConfig) -> MaskRule:
    """Select the `share` of tokens with the highest signal: by quantile with its ties, or exactly ceil(share T)."""
    from mm_spine.methods import weights

    rules = {"quantile": weights.top_quantile, "top_k": weights.top_k}
    return partial(rules[options.mask_rule], share=options.share)


def lowest_share(options: MethodConfig) -> MaskRule:
    """Select the `share` of tokens with the lowest signal, ties kept."""
    from mm_spine.methods import weights

    return partial(weights.lowest, share=options.share)


def exact_share(options: MethodConfig) -> MaskRule:
    """Select exactly ceil(share T) tokens of the highest signal."""
    from mm_spine.methods import weights

    return partial(weights.top_k, share=options.share)


def otsu_split(options: MethodConfig) -> MaskRule:
    """Select the tokens above Otsu's threshold."""
    from mm_spine.methods import weights

    return weights.otsu


# Bounds of the entropy band.


def quantile_band(options: MethodConfig) -> BoundsRule:
    """Bound by two quantiles of the forks (SPINE v1)."""
    from mm_spine.methods import band

    low, high = options.band_quantiles
    return partial(band.quantile_bounds, low=low, high=high)


def median_band(options: MethodConfig) -> BoundsRule:
    """Bound by median and MAD of the forks (SPINE v2)."""
    from mm_spine.methods import band

    return band.median_mad_bounds
