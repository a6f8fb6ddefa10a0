"""What can be known of an engine before a model loads: its temperature, the ranks that share it, and its cards.

With `tensor_parallel` above 1, each group of so many ranks of a host has one engine on the cards of all of them. The
first rank of the group samples the questions of the whole group.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from mm_spine import distributed
from mm_spine.config import ConfigError, RunConfig
from mm_spine.policy.folder import read_family
from mm_spine.policy.parameters import read_text_config

MAX_TEMPERATURE = 2.0
"""The highest temperature that vLLM takes."""


def check_config(config: RunConfig, folder: Path | None) -> None:
    """Raise ConfigError for settings that cannot work here, with the model in `folder` if it is on this machine."""
    for section, decoding in (("sampling", config.sampling), ("evaluation", config.evaluation)):
        check_temperature(decoding.temperature, f"{section}.temperature")
    if folder is not None:
        _check_family(folder)
    cards = torch.cuda.device_count() if torch.cuda.is_available() else None
    heads = None if folder is None else _heads(folder)
    check_layout(config.sampling.vllm.tensor_parallel, distributed.local_processes(), cards, heads)


def _check_family(folder: Path) -> None:
    """Raise ConfigError for a model whose images this package does not hand to vLLM."""
    if not read_family(folder).vllm:
        raise ConfigError(
            f"sampling.backend=vllm: {folder} reads images in tiles, which this package does not hand to vLLM; "
            "use sampling.backend=hf"
        )


def check_temperature(temperature: float, name: str = "temperature") -> None:
    """Raise ConfigError for a temperature that vLLM does not take."""
    if temperature > MAX_TEMPERATURE:
        raise ConfigError(
            f"{name}={temperature:g}: vLLM takes {MAX_TEMPERATURE:g} at most; lower it, or use sampling.backend=hf"
        )


def _heads(folder: Path) -> int:
    return int(read_text_config(folder).num_attention_heads)


def check_layout(wanted: int, ranks: int, cards: int | None, heads: int | None = None) -> None:
    """Raise ConfigError if `sampling.vllm.tensor_parallel`, `wanted`, cannot work.

    `ranks` train on this host. `cards` is how many a process sees, None on a CPU; `heads` is how many attention heads
    the model has, None where nobody knows yet.
    """
    name = f"sampling.vllm.tensor_parallel={wanted}"
    if ranks > 1 and ranks % wanted:
        raise ConfigError(
            f"{name}: an engine takes the cards of {wanted} ranks of one host, and {ranks} ranks run on this one; "
            f"set it to a divisor of {ranks}"
        )
    if cards is not None and ranks == 1 and wanted > max(cards, 1):
        raise ConfigError(f"{name}: this process sees {cards} cards; set it to {cards}")
    if heads is not None and heads % wanted:
        raise ConfigError(f"{name}: the model has {heads} attention heads; set it to a divisor of {heads}")


def own_cards(count: int) -> str:
    """Return the card that this rank trains on and the `count - 1` after it, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    first = torch.cuda.current_device()
    numbers = range(first, first + count)
    names = [name.strip() for name in visible.split(",")] if visible else []
    return ",".join(names[n] if names else str(n) for n in numbers)
