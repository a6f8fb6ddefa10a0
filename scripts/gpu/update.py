"""The product's own update at the shape of Qwen2.5-VL-3B: seconds, memory, share of the matmul rate of the same run."""

from __future__ import annotations

import gc
import traceback
from typing import Any

import flop_counts
import plain_step
import step as bench
import timing
import torch
import workload
from flop_counts import Needed
from timing import middle
from workload import Sizes, Work

from gpu import shapes
from gpu.notes import Setting, one_line
from mm_spine.config import ModelConfig, RunConfig
from mm_spine.methods.table import configure
from mm_spine.policy.model import DTYPES, Policy
from mm_spine.training.batch import trained_groups
from mm_spine.training.budget import MemoryShortage
from mm_spine.training.loss import denominators
from mm_spine.training.update import Updater
from mm_spine.types import StepReport

TABLE = "One optimiser step of one question with an image"
PRODUCTS = 4
UPDATE, MATMUL = "update", "matrix products"
NO_LIMIT = 10**9
FULL, LORA = "full", "lora"


def measure(setting: Setting) -> None:
    """Measure full training and LoRA, activations kept and recomputed, at both sizes of a step."""
    sizes = [shapes.of_3b(setting.rehearsal, *each) for each in shapes.responses(setting.rehearsal)]
    setting.notes.say(
        f"{shapes.in_words(sizes[0])}, image of {sizes[0].image_tokens:,} tokens, {sizes[0].selected:.0%} of the "
        "response tokens selected at random, no KL, learning rate 0, DeepSpeed with fp32 master weights; seconds are "
        "the median of the turns after the first. Needed work: `needed` in scripts/bench/flop_counts.py, what is "
        "recomputed not counted; LoRA without the gradients of frozen weights."
    )
    for train in (FULL, LORA):
        policy = make_policy(sizes[0], train, setting.device)
        if train == FULL:
            note_tower(policy, sizes[0], setting)
        for recompute in (False, True):
            with_engine(policy, train, recompute, sizes, setting)
        del policy
        free(setting.device)


def make_policy(sizes: Sizes, train: str, device: torch.device) -> Policy:
    """Build a random model on the device."""
    limits = {"min_pixels": workload.TOKEN_PIXELS**2, "max_pixels": workload.MOST_PIXELS}
    config = ModelConfig.model_validate({"dtype": sizes.dtype, "train": train, **limits})
    return Policy(shapes.make_model(sizes, device), workload.make_processor(), config)


def configuration(sizes: Sizes, train: str, recompute: bool) -> RunConfig:
    """Return the configuration of an update in one micro-batch; sampler and trainer are not compared."""
    options = bench.options_for(sizes).model_dump(exclude={"name"})
    engine = {"token_budget": NO_LIMIT, "checkpoint_activations": recompute, "parity_limit": float(NO_LIMIT)}
    method = {**options, "name": "random-mask"}
    return configure({"model": {"dtype": sizes.dtype, "train": train}, "method": method, "engine": engine})


def with_engine(policy: Policy, train: str, recompute: bool, sizes: list[Sizes], setting: Setting) -> None:
    """Measure every size with one engine. What fails is noted, and the next engine has its turn."""
    kind = {"trained": train, "activations": "recomputed" if recompute else "kept"}
    engines: list[Updater] = []
    try:
        engines.append(Updater(policy, configuration(sizes[0], train, recompute)))
        for each in sizes:
            columns = kind | {"responses": f"{each.rollouts} x {each.response_tokens}"}
            setting.notes.row(TABLE, **columns, **one_size(engines[0], each, train, setting))
    except torch.OutOfMemoryError as error:
        setting.notes.row(TABLE, **kind, **{"": f"does not fit: {one_line(error)}"})
    except Exception as error:
        traceback.print_exc()
        setting.notes.problem(f"{' '.join(kind.values())}: {one_line(error)}")
    for each in engines:
        each.engine.close()
    engines.clear()
    free(setting.device)


def one_size(updater: Updater, sizes: Sizes, train: str, setting: Setting) -> dict[str, Any]:
    """Return the figures of one size, or that it does not fit into the memory."""
    options = updater.config.method
    work = workload.make_work(sizes, options)
    groups = trained_groups(work.groups, work.tokens, options)
    over = denominators(work.groups, work.tokens, options)
    why = None

    def update() -> None:
        updater.update(StepReport(step=0), groups, over, None)

    try:
        first = timing.timed(update, setting.device).wall
        held = held_bytes(setting.device)
        above = timing.peak_memory(update, setting.device)
        product = flop_counts.Matmul(setting.device, DTYPES[sizes.dtype])
        steps = {UPDATE: update, MATMUL: lambda: [product() for _ in range(PRODUCTS)]}
        taken = timing.interleaved(steps, setting.device, 1 if setting.rehearsal else 3)
    except (MemoryShortage, torch.OutOfMemoryError) as error:
        why = one_line(error)
    if why is not None:
        # Outside the handler: the exception is gone, and with its traceback the activations.
        updater.engine.discard()
        free(setting.device)
        return {"": f"does not fit: {why}"}
    seconds = middle(taken[UPDATE]).wall
    rate = PRODUCTS * product.flops / middle(taken[MATMUL]).wall
    need = needed(sizes, work, len(updater.policy.prompt(work.groups[0].question).ids_L), train)
    return {
        "seconds": seconds,
        "first time": first,
        "peak GiB": None if held is None else (held + above) / 2**30,
        "above weights and state": above / 2**30,
        "TFLOP needed": need.total / 1e12,
        "matmul TFLOP/s": rate / 1e12,
        "share of the matmul rate": need.total / (seconds * rate),
    }


def needed(sizes: Sizes, work: Work, prompt_tokens: int, train: str) -> Needed:
    """Return the work that the update needs; frozen weights have no gradient, so that a third of theirs falls away."""
    whole = flop_counts.needed(sizes, work, prompt_tokens)
    if train == FULL:
        return whole
    return whole._replace(trunk=whole.trunk * 2 / 3, head=whole.head * 2 / 3)


def held_bytes(device: torch.device) -> int | None:
    """Return the bytes of weights, optimiser state and caches on the card; None on a CPU."""
    return int(torch.cuda.memory_allocated(device)) if device.type == "cuda" else None


def free(device: torch.device) -> None:
    """Give back what is no longer used."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def note_tower(policy: Policy, sizes: Sizes, setting: Setting) -> None:
    """Write down what the tower costs once per image, which the updates below do not contain."""
    work = workload.make_work(sizes, bench.options_for(sizes))
    rows = plain_step.make_rows(work, policy.processor, setting.device, DTYPES[sizes.dtype])
    seconds = [
        timing.timed(lambda: plain_step.encode_images(policy.model, rows), setting.device).wall for _ in range(2)
    ]
    setting.notes.say(f"The tower, once per image and not part of a step: {seconds[-1]:.3f} s.")
