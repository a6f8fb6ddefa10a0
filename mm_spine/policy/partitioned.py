"""Weights that ranks divide among themselves (ZeRO stage 3): loaded, gathered one at a time, and never whole on a rank.

Every function here but `is_partitioned` is a collective: all ranks call it in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from mm_spine.policy.errors import ModelError
from mm_spine.policy.families import Family

PREFIXES = (
    ("", ""),
    ("visual.", "model.visual."),
    ("model.", "model.language_model."),
    ("language_model.model.", "model.language_model."),
    ("language_model.lm_head.", "lm_head."),
    ("vision_tower.vision_model.", "model.vision_tower."),
    *((part, f"model.{part}") for part in ("vision_tower.", "multi_modal_projector.", "image_newline")),
)
"""How names in weight files begin, and the names of the parameters they belong to."""


def is_partitioned(tensor: Tensor) -> bool:
    """Whether this rank holds only its part of the parameter."""
    return hasattr(tensor, "ds_id")


@contextmanager
def gathered(*tensors: Tensor) -> Iterator[None]:
    """Within the context, hold the whole values of those that are partitioned."""
    held = [tensor for tensor in tensors if is_partitioned(tensor)]
    if not held:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(held):
        yield


def size_of(parameter: Tensor) -> int:
    """Return how many numbers a parameter has in all, wherever they are."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def load(folder: Path, family: Family, dtype: torch.dtype, device: torch.device, settings: Mapping[str, Any]) -> Any:
    """Load a checked model folder with the text model's weights partitioned as DeepSpeed's `settings` say.

    At most one weight of the text model is whole at a time. The tower is whole on every rank. Raises ModelError for a
    weight that has no place in the model, or a place without a weight.
    """
    model = _without_weights(folder, family, dtype)
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    tower = family.tower(model)
    whole = set() if tower is None else {id(parameter) for parameter in tower.parameters()}
    first: Any = None
    for stored, value in _stored(folder):
        name = _name_in(names, stored, folder)
        parameter = model.get_parameter(name)
        loaded = nn.Parameter(value.to(device, dtype, copy=True), requires_grad=parameter.requires_grad)
        _put(model, name, loaded)
        if id(parameter) not in whole:
            first = _partition(loaded, first, dtype, settings)
    if model.lm_head.weight.device.type == "meta":
        model.lm_head.weight = model.get_input_embeddings().weight
    empty = [name for name, parameter in model.named_parameters() if parameter.device.type == "meta"]
    if empty:
        raise ModelError(f"model={folder}: no weights for {empty[0]}; fetch the folder again")
    return model.to(device)


def _without_weights(folder: Path, family: Family, dtype: torch.dtype) -> Any:
    """Return the model of the folder's config.json with its buffers, and parameters that take no memory."""
    import transformers
    from accelerate import init_empty_weights

    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    with init_empty_weights(include_buffers=False):
        model = getattr(transformers, family.auto_model).from_config(config, dtype=dtype, attn_implementation="sdpa")
    if (folder / "generation_config.json").is_file():
        model.generation_config = transformers.GenerationConfig.from_pretrained(folder)
    return model


def _stored(folder: Path) -> Iterator[tuple[str, Tensor]]:
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a mapping)
                yield name, tensors.get_tensor(name)


def _name_in(names: set[str], stored: str, folder: Path) -> str:
    """Return which of the parameters `names` a tensor of a file belongs to."""
    found = (new + stored.removeprefix(old) for old, new in PREFIXES if stored.startswith(old))
    for name in found:
        if name in names:
            return name
    raise ModelError(f"model={folder}: {stored} is no weight of its model; fetch the folder again")


def _put(model: Any, name: str, parameter: nn.Parameter) -> None:
    place, _, own = name.rpartition(".")
    setattr(model.get_submodule(place), own, parameter)


def _partition(parameter: nn.Parameter, first: Any, dtype: torch.dtype, settings: Mapping[str, Any]) -> Any:
    """Keep only this rank's part of `parameter`. `first` is a partitioned parameter, None for none yet; returns one."""
    if first is None:
        import deepspeed

        deepspeed.zero.Init(nn.ParameterList([parameter]), config_dict_or_path=dict(settings), dtype=dtype)
        return parameter
    first.convert_to_zero_parameters(param_list=[parameter])
    return first
