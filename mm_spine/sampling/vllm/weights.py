"""The weights of the policy's text model under the names that vLLM loads them by, LoRA merged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from mm_spine.policy.merged import merged_weight
from mm_spine.policy.model import Policy
from mm_spine.policy.partitioned import gathered, size_of

HEAD = "lm_head.weight"


def served_weights(policy: Policy, trained_only: bool = False) -> Iterator[tuple[str, Tensor]]:
    """Yield (name in the checkpoint, detached tensor) of the text model and its head, one at a time.

    `trained_only` restricts them to what training changes: trainable parameters, and projections with LoRA. The tower
    is left out, because vLLM is given image features.
    """
    language_model = policy.text.language_model
    name = next(name for name, module in policy.model.named_modules() if module is language_model)
    with torch.no_grad():
        yield from _weights_of(language_model, name, trained_only)
        # A tied head is sent beside the embedding; vLLM would keep the old one.
        head = policy.text.head.weight
        if head.requires_grad or not trained_only:
            with gathered(head):
                yield HEAD, head.detach()


def replaces_all(policy: Policy) -> bool:
    """Return whether training changes every weight that vLLM is given."""
    return all(weight.requires_grad for weight in (*policy.text.language_model.parameters(), policy.text.head.weight))


def most_bytes(policy: Policy) -> int:
    """Return the bytes of all that `served_weights` yields, or more."""
    weights = (*policy.text.language_model.parameters(), policy.text.head.weight)
    return sum(size_of(weight) * weight.element_size() for weight in weights)


def _weights_of(module: nn.Module, name: str, trained_only: bool) -> Iterator[tuple[str, Tensor]]:
    if hasattr(module, "base_layer"):
        yield from _merged(module, name)
        return
    for own, parameter in module.named_parameters(recurse=False):
        if parameter.requires_grad or not trained_only:
            with gathered(parameter):
                yield f"{name}.{own}", parameter.detach()
    for child, part in module.named_children():
        yield from _weights_of(part, f"{name}.{child}", trained_only)


def _merged(module: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the weight of a projection with LoRA, W + scale * B A, and its bias."""
    # The bias goes too, although it is frozen: vLLM initialises a module anew when it loads a part of it.
    for own, parameter in module.base_layer.named_parameters():
        if own == "weight":
            yield f"{name}.{own}", merged_weight(module)
        else:
            with gathered(parameter):
                yield f"{name}.{own}", parameter.detach()
