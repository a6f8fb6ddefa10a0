"""Whether numbers are finite, before anything is trained on them or saved."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from mm_spine.policy.errors import NotFinite
from mm_spine.policy.partitioned import gathered

PART = 2**24
"""Numbers that are looked at together: torch copies those in bfloat16 to fp32."""


@torch.no_grad()
def first_not_finite(named: Iterable[tuple[str, Tensor]]) -> str | None:
    """Return the name of the first floating-point tensor whose norm in fp32 is not finite, None if all are.

    The norm is not finite where an element is NaN or infinite, and where elements are beyond about 1e19, whose squares
    overflow in every norm layer and dot product.
    """
    for name, tensor in named:
        if not tensor.is_floating_point():
            continue
        with gathered(tensor):
            for part in tensor.detach().reshape(-1).split(PART):
                # One pass and one number, without a mask as large as the tensor.
                if part.numel() and not torch.isfinite(torch.linalg.vector_norm(part, dtype=torch.float32)):
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
