"""The weights of a model as they are saved, LoRA merged: made when they are written, so that no second model exists.

Where ranks divide the weights, rank 0 writes. It asks for one weight after the other, and the other ranks hand over
their parts.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mm_spine.policy.errors import ModelError
from mm_spine.policy.partitioned import gathered, is_partitioned

SHARD_BYTES = 2**30
"""Most bytes of a file of weights. While a model is saved, the weights made for one file are in memory."""

_BASE, _ADAPTER, _END = ".base_layer.", ".lora_", ""
_ADAPTERS = "adapters"


class LaterWeight(Tensor):
    """Stands for a weight that `make` returns, and is made once it is asked for as `contiguous`, as saving does."""

    # It has the type, shape and size of the weight, from which transformers plans the files.

    make: Callable[[], Tensor]
    used: bool

    def contiguous(self, *arguments: Any, **named: Any) -> Tensor:
        """Return the weight itself, a new tensor."""
        self.used = True
        return self.make()


@torch.no_grad()
def merged_weight(projection: Any) -> Tensor:
    """Return the weight of a projection with LoRA, W + scale x B A, a new tensor in the type of W."""
    base: Tensor = projection.base_layer.weight
    with gathered(base, projection.lora_A["default"].weight, projection.lora_B["default"].weight):
        # In place, as peft merges: the sum is rounded to the type of W once.
        return base.detach().clone().add_(projection.get_delta_weight("default"))


class SavedState:
    """What is saved of a model. `weights` maps name -> weight, a `LaterWeight` where it must be merged or gathered."""

    def __init__(self, model: Any) -> None:
        self.model = model
        parameters = model.state_dict(keep_vars=True)
        self.adapters = {name: tensor for name, tensor in parameters.items() if _ADAPTER in name}
        self.together = any(is_partitioned(tensor) for tensor in parameters.values())
        self.weights: dict[str, Tensor] = {}
        self._makers: dict[str, Callable[[], Tensor]] = {}
        stand_ins: dict[int, Tensor] = {}
        projections = {f"{name}.weight": m for name, m in model.named_modules() if hasattr(m, "lora_A")}
        for own, tensor in parameters.items():
            if own in self.adapters:
                continue
            name = own.replace(_BASE, ".")
            if name in projections:
                self._makers[name] = partial(merged_weight, projections[name])
            elif is_partitioned(tensor):
                self._makers[name] = partial(_gathered_copy, tensor)
            if name not in self._makers:
                self.weights[name] = tensor.detach()
                continue
            # One for each parameter, so that a tied head is still seen to be the embedding.
            stand_ins.setdefault(id(tensor), _stand_in(tensor, partial(self._ask, name)))
            self.weights[name] = stand_ins[id(tensor)]

    def whole(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, weight), each made as it is asked for."""
        for name, weight in self.weights.items():
            yield name, weight.make() if isinstance(weight, LaterWeight) else weight

    def save(self, folder: Path) -> None:
        """Write the weights and the configuration to `folder`, in files of at most SHARD_BYTES.

        Raises ModelError if transformers has saved a weight that was not made.
        """
        later = [weight for weight in self.weights.values() if isinstance(weight, LaterWeight)]
        self.model.save_pretrained(folder, state_dict=self.weights, max_shard_size=SHARD_BYTES)
        if not all(weight.used for weight in later):
            raise ModelError(f"{folder}: this version of transformers saved weights without their adapters; remove it")
        index = folder / "model.safetensors.index.json"
        if self.adapters and index.is_file():
            # transformers counts the adapters, which are merged.
            content = json.loads(index.read_text())
            counts = {id(p): p.numel() for name, p in self.model.named_parameters() if _ADAPTER not in name}
            content["metadata"]["total_parameters"] = sum(counts.values())
            index.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
        # safetensors lets only the owner read what it writes. Whoever may read the rest is to read the weights, too.
        for weights in folder.glob("*.safetensors"):
            shutil.copymode(folder / "config.json", weights)

    def save_adapter(self, peft: Any, folder: Path) -> None:
        """Write the adapters alone."""
        self._announce(_ADAPTERS)
        prefix = "base_model.model."
        # peft's own names of the adapters, and values that are whole.
        peft.save_pretrained(folder, state_dict={f"{prefix}{name}": x for name, x in self._whole_adapters().items()})

    def done(self) -> None:
        """Let the other ranks go on."""
        self._announce(_END)

    def help(self) -> None:
        """On the other ranks, hand over what rank 0 asks for, until it is done."""
        while (name := self._heard()) != _END:
            self._whole_adapters() if name == _ADAPTERS else self._makers[name]()

    def _ask(self, name: str) -> Tensor:
        self._announce(name)
        return self._makers[name]()

    def _whole_adapters(self) -> dict[str, Tensor]:
        return {name: _gathered_copy(tensor) for name, tensor in self.adapters.items()}

    def _announce(self, name: str) -> None:
        if self.together:
            dist.broadcast_object_list([name], src=0)

    def _heard(self) -> str:
        heard: list[Any] = [None]
        dist.broadcast_object_list(heard, src=0)
        return str(heard[0])


def _stand_in(parameter: Tensor, make: Callable[[], Tensor]) -> LaterWeight:
    # Memory that is never touched is never taken.
    shape = getattr(parameter, "ds_shape", parameter.shape)
    whole = torch.empty(shape, dtype=parameter.dtype) if is_partitioned(parameter) else parameter.detach()
    weight = whole.as_subclass(LaterWeight)
    weight.make, weight.used = make, False
    return weight


def _gathered_copy(parameter: Tensor) -> Tensor:
    if not is_partitioned(parameter):
        return parameter.detach()
    with gathered(parameter):
        # A copy also where it is on the CPU already: the whole value is freed when the context ends.
        return parameter.detach().to("cpu", copy=True)
