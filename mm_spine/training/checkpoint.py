"""Checkpoints at step boundaries: what is saved, which one is whole, and what a resumed run compares.

A checkpoint is a folder `step_<k>` with `state.json`, the trainable weights, AdamW's state of each rank, the anchor of
the KL where it moves, and the SHA-256 of each of these files in `SHA256SUMS` (`sha256sum -c SHA256SUMS` checks them
too). Nothing in it is a pickle.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mm_spine import distributed, files
from mm_spine.config import ConfigError
from mm_spine.methods.apply import BAND
from mm_spine.training.update import Updater

log = logging.getLogger(__name__)

STATE, WEIGHTS, SUMS = "state.json", "weights.safetensors", "SHA256SUMS"

UNFINISHED = "writing"
"""The folder in which a checkpoint is written before it is renamed."""

_NAME = re.compile(r"step_\d{6,}")
_SUM = re.compile(r"([0-9a-f]{64})  ([\w.]+)")


@dataclass(frozen=True)
class SavedState:
    """`state.json` of a checkpoint.

    `token_budget` is the budget in use, `token_budget_set` the one of the configuration, `step` the steps done.
    `first_gaps` is what `ParityWatch.first` holds, `memory` what the method remembers. Older versions wrote
    `anchored`, the fixed bounds of the band in nats, where the memory has them now.
    """

    world_size: int
    threads: int
    token_budget: int | None
    token_budget_set: int | Literal["auto"]
    step: int
    # Checkpoints of older versions have none; the first resumed step is then the one to hold others against.
    first_gaps: dict[str, float] = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=dict)
    anchored: list[float] | None = None

    def __post_init__(self) -> None:
        if self.anchored:
            self.memory.setdefault(BAND, self.anchored)


def save(updater: Updater, folder: Path, step: int, memory: Mapping[str, Any]) -> None:
    """Write `folder/step_<k>` aside and rename it. All but the newest `checkpoint.keep` are deleted.

    Every rank writes its part. Raises OSError, and then leaves the earlier checkpoints as they are.
    """
    config, first = updater.config, distributed.rank() == 0
    state = SavedState(
        world_size=distributed.world_size(),
        threads=torch.get_num_threads(),
        token_budget=updater.budget.tokens,
        token_budget_set=config.engine.token_budget,
        step=step,
        first_gaps=updater.parity.first,
        memory=dict(memory),
    )
    finished, aside = folder / f"step_{step:06d}", folder / UNFINISHED
    with files.atomic_folder(finished, aside) if first else nullcontext():
        distributed.barrier()
        written = {_optimizer_file(distributed.rank()): updater.engine.state()}
        if first and not updater.engine.partitioned:
            written[WEIGHTS] = {name: weight.detach() for name, weight in updater.engine.policy.trainable().items()}
        if updater.moving_anchor is not None and (first or updater.engine.partitioned):
            written[_anchor_file(updater)] = updater.moving_anchor.state()
        for name, tensors in written.items():
            save_tensors(aside / name, tensors)
        if first:
            (aside / STATE).write_text(json.dumps(asdict(state)))
        mine = [f"{files.sha256(aside / name)}  {name}\n" for name in (*written, *([STATE] if first else ()))]
        sums = distributed.gather(mine)
        if first:
            (aside / SUMS).write_text("".join(sums))
    if first:
        kept = [path for path in checkpoints(folder) if step_of(path) <= step][: config.checkpoint.keep]
        for path in checkpoints(folder):
            if path not in kept:
                shutil.rmtree(path)
    distributed.barrier()


def resume(updater: Updater, folder: Path) -> SavedState:
    """Load the newest whole checkpoint of `folder` into `updater` and return its state.

    Raises ConfigError where there is none, or where it was written by another number of processes.
    """
    newest = newest_checkpoint(folder)
    if newest is None:
        raise ConfigError(f"{folder}: no checkpoint to resume from; start without --resume in a new folder")
    state = SavedState(**json.loads((newest / STATE).read_text()))
    if state.world_size != distributed.world_size():
        raise ConfigError(
            f"{newest}: written by {state.world_size} processes, resumed with {distributed.world_size()}; start as many"
        )
    weights = load_tensors(newest / WEIGHTS) if (newest / WEIGHTS).exists() else {}
    updater.engine.restore(load_tensors(newest / _optimizer_file(distributed.rank())), weights)
    if updater.moving_anchor is not None:
        updater.moving_anchor.restore(load_tensors(newest / _anchor_file(updater)))
    # A budget that was probed or halved stays. One that the configuration now sets otherwise does not.
    if state.token_budget_set == updater.config.engine.token_budget:
        updater.budget.tokens = state.token_budget
    updater.parity.first = dict(state.first_gaps)
    _warn_of_changes("threads", state.threads, torch.get_num_threads())
    _warn_of_changes("token_budget", state.token_budget, updater.budget.tokens)
    return state


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in `folder`, whole or damaged, the newest first."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted((path for path in found if _NAME.fullmatch(path.name)), key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """Return the number of steps done in a checkpoint, from its name."""
    return int(checkpoint.name.removeprefix("step_"))


def newest_checkpoint(folder: Path, further: Callable[[Path], str | None] = lambda path: None) -> Path | None:
    """Return the newest checkpoint of `folder` that is whole, None where there is none at all.

    A damaged one is passed over with a warning, as is one that `further` finds something wrong with. Every rank must
    call this. Raises ConfigError where all are damaged.
    """
    found, problems = distributed.same_on_all(_newest(folder, further) if distributed.rank() == 0 else (None, []))
    if problems and found is None:
        raise ConfigError(
            f"{folder}: no checkpoint can be used ({'; '.join(problems)}); restore the files from a copy, or start "
            "again in a new folder"
        )
    for problem in problems:
        log.warning("%s: %s; going on from %s", folder, problem, found.name if found else found)
    return found


def damage(checkpoint: Path) -> str | None:
    """Say what is wrong with the files of a checkpoint, None if all are as they were written."""
    try:
        *lines, end = (checkpoint / SUMS).read_bytes().decode("ascii").split("\n")
    except FileNotFoundError:
        return f"{SUMS} is missing (an older version wrote pickles, which are not read)"
    except UnicodeDecodeError:
        return f"{SUMS} is damaged"
    sums = [_SUM.fullmatch(line) for line in lines]
    listed = {entry[2]: entry[1] for entry in sums if entry is not None}
    if end or None in sums or STATE not in listed:
        return f"{SUMS} is damaged"
    for name, digest in listed.items():
        try:
            if files.sha256(checkpoint / name) != digest:
                return f"{name} is damaged: it is not what was written (SHA-256)"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return None


def _newest(folder: Path, further: Callable[[Path], str | None]) -> tuple[Path | None, list[str]]:
    """Return the newest checkpoint without a problem, and the problem of each newer one."""
    problems: list[str] = []
    for path in checkpoints(folder):
        problem = damage(path) or further(path)
        if problem is None:
            return path, problems
        problems.append(f"{path.name}: {problem}")
    return None, problems


def _optimizer_file(rank: int) -> str:
    return f"optimizer_{rank:05d}.safetensors"


def _anchor_file(updater: Updater) -> str:
    """Return the file of the moving anchor: this rank's under ZeRO-3, else the one of all ranks."""
    return f"anchor_{distributed.rank() if updater.engine.partitioned else 0:05d}.safetensors"


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors, detached, as safetensors."""
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read what `save_tensors` wrote. Raises ConfigError where the file is missing or damaged."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{path}: cannot be read as tensors ({error}); start again in a new folder") from error


def _warn_of_changes(name: str, written: int | None, now: int | None) -> None:
    if written != now:
        log.warning("resumed with %s=%s, written with %s: results may differ in rounding", name, now, written)
