"""The rule for exactness in fp32: ours and the plain forward are both held against the plain forward in float64.

Ours may be at most three times as far from it as plain fp32 is, so that no limit depends on the processor.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

TIMES = 3.0
FLOOR = 1e-6


class InDouble(TorchFunctionMode):
    """Within the context, what asks for float32 gets float64, as transformers' norms and rotary embeddings do."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.float:
            return args[0].double()
        args = tuple(torch.float64 if arg is torch.float32 else arg for arg in args)
        kwargs = {k: torch.float64 if v is torch.float32 else v for k, v in (kwargs or {}).items()}
        return func(*args, **kwargs)


def double_of(model: Any) -> Any:
    """A copy of the model in float64."""
    return copy.deepcopy(model).double()


def distance(found: Tensor, exact: Tensor) -> float:
    return float((found.detach().double() - exact.detach().double()).abs().max())


def assert_exact(ours: Sequence[Tensor], plain: Sequence[Tensor], exact: Sequence[Tensor], what: str = "") -> None:
    """The largest error of ours is at most three times that of plain fp32; all values of a test are taken together."""
    assert exact[0].dtype == torch.float64
    our, its, double = (torch.cat([x.detach().double().flatten() for x in part]) for part in (ours, plain, exact))
    limit = max(TIMES * distance(its, double), FLOOR * max(1.0, float(double.abs().max())))
    assert distance(our, double) <= limit, (what, distance(our, double), distance(its, double))


def assert_exact_gradients(gradients: Iterable[tuple[str, Tensor, Tensor, Tensor]]) -> None:
    """The same rule for each parameter: (name, ours, plain, exact), by the norm relative to the exact one's.

    Plain fp32 counts as at least `FLOOR` away, since a single tensor can be nearer by luck. No gradient may vanish.
    """
    for name, ours, its, exact in gradients:
        size = float(exact.norm())
        assert exact.dtype == torch.float64 and size > 0, name
        own, plain = (float((gradient.double() - exact).norm()) / size for gradient in (ours, its))
        assert own <= TIMES * max(plain, FLOOR), (name, own, plain)
