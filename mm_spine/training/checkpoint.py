"""Checkpoints at step boundaries: what is saved beside weights and optimiser, and what a resumed run compares."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch

from mm_spine import distributed
from mm_spine.config import ConfigError
from mm_spine.methods.band import Bounds
from mm_spine.training.update import Updater

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SavedState:
    """`state.json` of a checkpoint.

    `token_budget` is the budget in use, `token_budget_set` the one of the configuration, `anchored` the fixed bounds
    of the band in nats (None without), `step` the steps done.
    """

    world_size: int
    threads: int
    token_budget: int | None
    token_budget_set: int | Literal["auto"]
    anchored: list[float] | None
    step: int

    @property
    def bounds(self) -> Bounds | None:
        """The fixed bounds of the band, None where there are none."""
        return Bounds(*(torch.tensor(bound) for bound in self.anchored)) if self.anchored else None


def save(updater: Updater, folder: Path, step: int, bounds: Bounds | None) -> None:
    """Write `folder/step_<k>` aside and rename it. All but the newest `checkpoint.keep` are deleted."""
    config = updater.config
    state = SavedState(
        world_size=distributed.world_size(),
        threads=torch.get_num_threads(),
        token_budget=updater.budget.tokens,
        token_budget_set=config.engine.token_budget,
        anchored=None if bounds is None else [float(bound) for bound in bounds],
        step=step,
    )
    finished, aside = folder / f"step_{step:06d}", folder / "writing"
    updater.engine.save(aside)
    if distributed.rank() == 0:
        (aside / "state.json").write_text(json.dumps(asdict(state)))
        shutil.rmtree(finished, ignore_errors=True)
        aside.rename(finished)
        for old in sorted(folder.glob("step_*"))[: -config.checkpoint.keep]:
            shutil.rmtree(old)
    distributed.barrier()


def resume(updater: Updater, folder: Path) -> SavedState:
    """Load the newest checkpoint of `folder` into `updater` and return its state.

    Raises ConfigError where there is none, or where it was written by another number of processes.
    """
    newest = newest_checkpoint(folder)
    if newest is None:
        raise ConfigError(f"{folder}: no checkpoint to resume from; start without --resume in a new folder")
    state = SavedState(**json.loads((newest / "state.json").read_text()))
    if state.world_size != distributed.world_size():
        raise ConfigError(
            f"{newest}: written by {state.world_size} processes, resumed with {distributed.world_size()}; "
            "start as many, or convert it with DeepSpeed's universal checkpoints"
        )
    updater.engine.load(newest)
    # A budget that was probed or halved stays. One that the configuration now sets otherwise does not.
    if state.token_budget_set == updater.config.engine.token_budget:
        updater.budget.tokens = state.token_budget
    _warn_of_changes("threads", state.threads, torch.get_num_threads())
    _warn_of_changes("token_budget", state.token_budget, updater.budget.tokens)
    return state


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the last complete checkpoint of `folder`, None without one."""
    complete = sorted(path.parent for path in folder.glob("step_*/state.json"))
    return complete[-1] if complete else None


def _warn_of_changes(name: str, written: int | None, now: int | None) -> None:
    if written != now:
        log.warning("resumed with %s=%s, written with %s: results may differ in rounding", name, now, written)
