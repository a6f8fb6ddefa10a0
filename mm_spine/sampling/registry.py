"""The samplers by name. A new backend is a class, an entry of `SAMPLERS` and a name in `SamplingConfig.backend`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mm_spine.config import ConfigError, DecodingConfig, RunConfig
from mm_spine.policy.model import Policy
from mm_spine.sampling import Sampler
from mm_spine.sampling.backend import Backend
from mm_spine.sampling.growing import GrowingSampler
from mm_spine.sampling.hf import HFSampler
from mm_spine.sampling.regenerate import RegeneratingSampler
from mm_spine.sampling.tree import TreeSampler
from mm_spine.sampling.vllm.installed import why_not as why_not_vllm
from mm_spine.sampling.vllm.layout import check_config as check_vllm
from mm_spine.sampling.vllm.sampler import VLLMSampler
from mm_spine.sampling.wordings import WordingSampler
from mm_spine.types import Growth


class BackendEntry(NamedTuple):
    """How a backend is made, and `why_not` it can run on this machine: one sentence, or "" if it can.

    `why_not(load)` looks at versions only, unless `load` allows it to import the backend's package. `check` raises
    ConfigError for settings that cannot work with the model in a folder, None where it is not on this machine yet.
    """

    make: Callable[[Policy, DecodingConfig, RunConfig], Backend]
    why_not: Callable[[bool], str] = lambda load: ""
    check: Callable[[RunConfig, Path | None], None] = lambda config, folder: None


def _hf(policy: Policy, decoding: DecodingConfig, config: RunConfig) -> Backend:
    return HFSampler(policy, decoding, config.seed)


def _vllm(policy: Policy, decoding: DecodingConfig, config: RunConfig) -> Backend:
    return VLLMSampler(policy, decoding, config.sampling.vllm, config.seed)


SAMPLERS: Mapping[str, BackendEntry] = {"hf": BackendEntry(_hf), "vllm": BackendEntry(_vllm, why_not_vllm, check_vllm)}

GROWING: Mapping[str, Callable[[Backend, Any], GrowingSampler]] = {
    "tree": TreeSampler,
    "regenerate": RegeneratingSampler,
}
"""Key of `sampling` whose section, where there is one, makes rollouts grow from others -> the sampler that does it."""


def check_sampler(name: str, load: bool = False) -> None:
    """Raise ConfigError, saying why and what to do, if this machine cannot run the backend `name`.

    Only versions are read; `load` also imports the backend's package, which may take seconds.
    """
    why_not = SAMPLERS[name].why_not(load)
    if why_not:
        raise ConfigError(f"sampling.backend={name}: {why_not}")


def check_sampling(config: RunConfig, folder: Path | None) -> None:
    """Raise ConfigError for settings of the backend that cannot work here; no model is loaded.

    `folder` is the model's, None where it is not on this machine yet.
    """
    SAMPLERS[config.sampling.backend].check(config, folder)


def make_sampler(
    policy: Policy, config: RunConfig, decoding: DecodingConfig | None = None, growth: Growth | None = None
) -> Sampler:
    """Return the sampler of `config.sampling`. Rollouts grow by `growth` where no section there says how.

    With `decoding`, return its backend without growth and further wordings, decoding as `decoding` says, as an
    evaluation needs it.
    """
    backend = SAMPLERS[config.sampling.backend].make(policy, decoding or config.sampling, config)
    if decoding is not None:
        return backend
    grown = backend if growth is None else GrowingSampler(backend, growth)
    sections = ((make, getattr(config.sampling, key)) for key, make in GROWING.items())
    grown = next((make(backend, section) for make, section in sections if section is not None), grown)
    return WordingSampler(grown, config.sampling.wordings) if config.sampling.wordings else grown
