"""The weights of a model with LoRA merged, one projection at a time, so that no second model is in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mm_spine.policy.errors import ModelError

SHARD_BYTES = 2**30
"""Most bytes of a file of weights. While a model with LoRA is saved, the merged weights of one file are in memory."""

_BASE, _ADAPTER = ".base_layer.", ".lora_"


class MergedWeight(Tensor):
    """A projection's weight W that becomes W + scale x B A once it is asked for as `contiguous`, as saving does."""

    # It shares the storage of W, so that transformers sees its type, shape and size.

    projection: Any
    used: bool

    def contiguous(self, *arguments: Any, **named: Any) -> Tensor:
        """Return the merged weight, a new tensor."""
        self.used = True
        return merged_weight(self.projection)


@torch.no_grad()
def merged_weight(projection: Any) -> Tensor:
    """Return the weight of a projection with LoRA, W + scale x B A, a new tensor in the type of W."""
    base: Tensor = projection.base_layer.weight
    # In place, as peft merges: the sum is rounded to the type of W once.
    return base.detach().clone().add_(projection.get_delta_weight("default"))


def merged_state(model: Any) -> dict[str, Tensor]:
    """Return name -> weight of `model` as if its LoRA were merged; a changed weight is a `MergedWeight`."""
    state = {name.replace(_BASE, "."): x for name, x in model.state_dict().items() if _ADAPTER not in name}
    for name, module in model.named_modules():
        if hasattr(module, "lora_A"):
            weight = module.base_layer.weight.detach().as_subclass(MergedWeight)
            weight.projection, weight.used = module, False
            state[f"{name}.weight"] = weight
    return state


def save(model: Any, folder: Path, state: dict[str, Tensor]) -> None:
    """Write the weights `state` of `model` and its configuration to `folder`, in files of at most SHARD_BYTES.

    Raises ModelError if transformers has saved a weight without its adapter.
    """
    later = [weight for weight in state.values() if isinstance(weight, MergedWeight)]
    model.save_pretrained(folder, state_dict=state, max_shard_size=SHARD_BYTES)
    if not all(weight.used for weight in later):
        raise ModelError(f"{folder}: this version of transformers saved weights without their adapters; remove it")
    index = folder / "model.safetensors.index.json"
    if later and index.is_file():
        # transformers counts the adapters, which are merged.
        content = json.loads(index.read_text())
        counts = (p.numel() for name, p in model.named_parameters() if _ADAPTER not in name)
        content["metadata"]["total_parameters"] = sum(counts)
        index.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def whole(state: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, weight) with each `MergedWeight` merged, one at a time."""
    for name, weight in state.items():
        yield name, merged_weight(weight.projection) if isinstance(weight, MergedWeight) else weight
