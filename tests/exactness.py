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
    """The same rule for each parameter: (name, ours, plain, exact), by the norm; none may vanish.

    Of one tensor the rounding is luck, so plain fp32 counts as at least as far as it is in its worst tensor, relative
    to the norms.
    """
    found = list(gradients)
    assert all(exact.dtype == torch.float64 and float(exact.norm()) > 0 for *_, exact in found)
    worst = max(float((its.double() - exact).norm() / exact.norm()) for _, _, its, exact in found)
    for name, ours, _, exact in found:
        own = float((ours.double() - exact).norm() / exact.norm())
        assert own <= max(TIMES * worst, FLOOR), (name, own, worst)
