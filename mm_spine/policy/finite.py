"""Whether numbers are finite, before anything is trained on them or saved."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from mm_spine.policy.errors import NotFinite


@torch.no_grad()
def first_not_finite(named: Iterable[tuple[str, Tensor]]) -> str | None:
    """Return the name of the first floating-point tensor whose norm in fp32 is not finite, None if all are.

    The norm is not finite where an element is NaN or infinite, and where elements are beyond about 1e19, whose squares
    overflow in every norm layer and dot product.
    """
    for name, tensor in named:
        if tensor.is_floating_point() and tensor.numel():
            # One pass and one number, without a mask as large as the tensor.
            norm = torch.linalg.vector_norm(tensor.detach(), dtype=torch.float32)
            if not torch.isfinite(norm):
                return name
    return None


def assert_finite(named: Iterable[tuple[str, Tensor]], what: str) -> None:
    """Raise NotFinite naming the first of the tensors that is not finite; `what` says what they are and what to do."""
    name = first_not_finite(named)
    if name is not None:
        raise NotFinite(f"{name} is not finite: {what}")


@contextmanager
def naming_step(step: int) -> Iterator[None]:
    """Put the step's number before the message of a NotFinite that the block raises."""
    try:
        yield
    except NotFinite as error:
        raise NotFinite(f"step {step}: {error}") from error
