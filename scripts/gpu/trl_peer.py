"""TRL's GRPOTrainer and ours on one card: same weights, rollouts, loss and optimiser (AdamW on the bf16 weights)."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from typing import Any

import step as bench
import timing
import torch
import trl_step
import workload
from step import Contestant
from timing import Step
from workload import Sizes

from gpu import shapes
from gpu.notes import Setting, Skipped, one_line
from gpu.update import free, held_bytes

TABLE = "The update of scripts/bench/step.py, all weights trained, beside TRL"
OURS, KEPT, RECOMPUTED = "ours", "TRL, activations kept", "TRL, activations recomputed (its default)"


def measure(setting: Setting) -> None:
    """Measure ours and TRL, one after the other, so that each has the card for itself. Raises Skipped without TRL."""
    absent = [name for name in ("trl", "datasets") if find_spec(name) is None]
    if absent:
        raise Skipped(f"{' and '.join(absent)} not installed here, and not carried")
    for each in shapes.responses(setting.rehearsal):
        sizes = shapes.of_3b(setting.rehearsal, *each)
        for name in (OURS, RECOMPUTED, KEPT):
            row = one(name, sizes, setting)
            setting.notes.row(TABLE, responses=f"{each[0]} x {each[1]}", update=name, **row)
            free(setting.device)
    note_ratios(setting)


def one(name: str, sizes: Sizes, setting: Setting) -> dict[str, Any]:
    """Return seconds and memory of one update, or that it does not fit into the memory."""
    try:
        update = make_update(name, sizes, setting.device)
        first = timing.timed(update, setting.device).wall
        held = held_bytes(setting.device)
        above = timing.peak_memory(update, setting.device)
        taken = [timing.timed(update, setting.device) for _ in range(1 if setting.rehearsal else 2)]
    except torch.OutOfMemoryError as error:
        return {"": f"does not fit: {one_line(error)}"}
    return {
        "seconds": timing.middle(taken).wall,
        "first time": first,
        "peak GiB": None if held is None else (held + above) / 2**30,
        "above weights and state": above / 2**30,
    }


def make_update(name: str, sizes: Sizes, device: torch.device) -> Step:
    """Build a model with its optimiser, and return the step to time."""
    options, processor = bench.options_for(sizes), workload.make_processor()
    work, model = workload.make_work(sizes, options), shapes.make_model(sizes, device)
    optimizer = workload.adamw(model)
    if name == OURS:
        policy = workload.make_policy(model, processor, sizes)
        policy.prompt(work.groups[0].question)  # warm: the tower has seen the image, as in any later step
        gradients: dict[str, Step] = {OURS: partial(bench.ours, policy, work, options)}
        return partial(Contestant(model, optimizer, gradients).update, OURS)
    recompute = name == RECOMPUTED
    trainer = trl_step.make_trainer(model, processor, work, sizes, options, optimizer, recompute)
    return partial(trl_step.update, trainer, trl_step.prepare(trainer, work))


def note_ratios(setting: Setting) -> None:
    """Write down how much faster and smaller ours is than the better of TRL's two ways."""
    rows = setting.notes.content["tables"][TABLE]
    for sizes in dict.fromkeys(row["responses"] for row in rows):
        mine = next(row for row in rows if row["responses"] == sizes and row["update"] == OURS)
        theirs = [row for row in rows if row["responses"] == sizes and row["update"] != OURS and "seconds" in row]
        if "seconds" not in mine or not theirs:
            continue
        fastest = min(theirs, key=lambda row: row["seconds"])
        smallest = min(theirs, key=lambda row: row["above weights and state"])
        setting.notes.row(
            "TRL / ours",
            responses=sizes,
            **{
                "seconds": fastest["seconds"] / mine["seconds"],
                "by": fastest["update"],
                "ours / TRL, memory above weights and state": mine["above weights and state"]
                / smallest["above weights and state"],
                "beside": smallest["update"],
            },
        )
