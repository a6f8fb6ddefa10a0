"""The samplers by name. A new backend is one class and one row."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from mm_spine.config import DecodingConfig, RunConfig
from mm_spine.policy.model import Policy
from mm_spine.sampling import Sampler
from mm_spine.sampling.hf import HFSampler

SAMPLERS: Mapping[str, Callable[[Policy, DecodingConfig, int], Sampler]] = {"hf": HFSampler}


def make_sampler(policy: Policy, config: RunConfig, decoding: DecodingConfig | None = None) -> Sampler:
    """The backend of `config.sampling`, decoding as it says or, for an evaluation, as `decoding` does."""
    return SAMPLERS[config.sampling.backend](policy, decoding or config.sampling, config.seed)
