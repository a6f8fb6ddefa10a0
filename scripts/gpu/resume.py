"""A run that was stopped and resumed, compared on the device with one that was not."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from small import digit_model, small_config
from tiny import tiny_processor, tiny_questions
from torch import Tensor

from gpu.notes import Setting
from mm_spine.adapt import Hooks, adapt
from mm_spine.policy.model import DTYPES, Policy

QUESTIONS, STOP_AFTER = 5, 1
CHANGES = {"method": {"name": "ttrl", "kl": "none"}}


def compare(setting: Setting, dtype: str) -> None:
    """Write down how far a resumed run's weights are from those of two runs that were not stopped.

    Where those two agree to the bit, the resumed run must agree with them, too. Elsewhere the device does not compute
    the same twice, and the figures say so.
    """
    with TemporaryDirectory(prefix="gpu_check_resume_") as folder:
        whole, again = (trained(setting, dtype) for _ in range(2))
        stops = iter([None] * (STOP_AFTER - 1) + ["SIGTERM"])
        trained(setting, dtype, checkpoints=Path(folder), should_stop=lambda: next(stops, None))
        resumed = trained(setting, dtype, checkpoints=Path(folder), resume=True)
    twice, after = (furthest(whole, other) for other in (again, resumed))
    setting.notes.row(
        "Resumed run: largest difference of a weight to the run that was not stopped",
        dtype=dtype,
        **{"the same run again": twice, "resumed after a step": after, "same to the bit": after == 0},
    )
    if twice == 0 < after:
        setting.notes.problem(f"{dtype}: a resumed run ends with other weights, and two whole runs with the same")


def trained(setting: Setting, dtype: str, **hooks: Any) -> dict[str, Tensor]:
    """Return the weights after three steps of a tiny model from the same start."""
    config = small_config(CHANGES, {"model": {"dtype": dtype}})
    model = digit_model().to(setting.device, DTYPES[dtype])
    policy = Policy(model, tiny_processor(), config.model)
    adapt(tiny_questions(QUESTIONS), policy, config=config, hooks=Hooks(**hooks))
    return policy.weights()


def furthest(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Return the largest difference of any weight; 0 only where all are the same to the bit."""
    return max(float((weight.double() - other[name].double()).abs().max()) for name, weight in one.items())
