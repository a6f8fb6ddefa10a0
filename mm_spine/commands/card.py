"""Whether a run fits on one card, by part, and how long it takes (`mm-spine adapt --dry-run --card NAME`).

All is arithmetic: nothing is measured, and each assumption is printed with the result. Bytes are from the formulas of
`mm_spine.commands.estimate`; memory is in 10^9 bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from mm_spine.commands import estimate, printing
from mm_spine.commands.estimate import PROMPT_TEXT, Described, Load, describe, load_of
from mm_spine.config import ConfigError, RunConfig
from mm_spine.words import nearest


class Card(NamedTuple):
    """A card by its maker's data sheet: memory in GB, dense bfloat16 rate in TFLOP/s, memory bandwidth in GB/s."""

    gb: int
    tflops: float
    gb_per_s: float


# NVIDIA's data sheets of these products; where one gives a rate with sparsity only, half of it. The rate of the
# RTX 4090 is that with fp32 accumulation (NVIDIA Ada GPU Architecture, appendix A).
CARDS: Mapping[str, Card] = {
    "h200-141": Card(141, 989.5, 4800),  # H200 SXM
    "h100-80": Card(80, 989.5, 3350),  # H100 SXM
    "a100-80": Card(80, 312, 2039),  # A100 80GB SXM
    "a100-40": Card(40, 312, 1555),  # A100 40GB SXM
    "l40s-48": Card(48, 362.05, 864),
    "rtx4090-24": Card(24, 165.2, 1008),
    "a10-24": Card(24, 125, 600),
    "l4-24": Card(24, 121, 300),
}

USABLE = 0.95
"""Share of a card's memory that a run may take: the rest is for the CUDA context and fragments. Our assumption.

The data sheet's GB are taken as 10^9 bytes; the cards have a little more."""

ASLEEP = 10**9
"""Bytes that vLLM keeps of a card while it sleeps: CUDA graphs and workspaces. Our assumption."""

MATMUL_SHARE = 0.4
"""Share of the card's matmul rate that the update reaches. Our assumption."""

BANDWIDTH_SHARE = 0.5
"""Share of the card's memory bandwidth that decoding reaches. Our assumption."""

HOST_BYTES_PER_S = 20e9
"""Rate at which optimiser state and anchor move between card and host. Our assumption: PCIe 4.0 x16 has 32e9."""

TYPICAL = 300
"""Tokens of a response that ends by itself. Our assumption; times are given for the limit too."""

ROOM_FOR_VLLM = 1.3
"""How many times what it needs at least vLLM is advised to get."""

FEW_IMAGE_TOKENS = 512
"""Image tokens of the size that is advised where an image takes too many."""

Phases = dict[str, dict[str, int]]


def find_card(name: str) -> Card:
    """Return the card of that name. Raises ConfigError with the nearest name."""
    if name not in CARDS:
        raise ConfigError(f"card={name!r}: no such card; {nearest(name, CARDS)}")
    return CARDS[name]


def phases(config: RunConfig, load: Load, card: Card) -> Phases:
    """Return phase -> part -> bytes on the card. The run takes the most of the phases, which follow each other.

    sample: the sampler beside weights, and beside optimiser state and anchor where they do not wait on the host.
    backward: the largest micro-batch. step: the optimiser's step, without an anchor that can wait on the host. save:
    LoRA is merged into the weights of one file after another. The tower's activations, once for each image, are not
    counted, nor are the image features of a micro-batch.
    """
    vllm, offloads = config.sampling.backend == "vllm", config.offloads
    sampler = "vLLM" if vllm else "key-value cache"
    share = int(config.sampling.vllm.memory_share * card.gb * 1e9)
    weights = estimate.weight_bytes(load) + estimate.zero3_bytes(config, load)
    optimiser, anchor = estimate.optimizer_bytes(config, load), estimate.anchor_bytes(config, load)
    gradients = load.trained * load.size
    sample = {
        "weights": weights,
        "optimiser": 0 if offloads else optimiser,
        "anchor": 0 if offloads else anchor,
        sampler: share if vllm else estimate.cache_bytes(config, load),
        "temporaries": 0 if vllm else estimate.sampling_bytes(config, load),
    }
    if not load.trained:
        return {"sample": sample}
    kept = {"weights": weights, "optimiser": optimiser, sampler: ASLEEP if vllm else 0}
    backward = {
        "anchor": anchor,
        "gradients": gradients + estimate.gradient_sum_bytes(config, load),
        "activations": estimate.micro_batch_bytes(config, load),
        "head": estimate.head_bytes(config, load),
    }
    step = {
        "anchor": 0 if offloads else anchor,
        "gradients": gradients,
        "temporaries": estimate.step_bytes(config, load),
    }
    found = {"sample": sample, "backward": kept | backward, "step": kept | step}
    merging = estimate.save_bytes(config, load)
    return found | {"save": kept | {"anchor": anchor, "temporaries": merging}} if merging else found


def peak(found: Phases) -> int:
    """Return the bytes of the phase that takes most."""
    return max(sum(parts.values()) for parts in found.values())


def host_bytes(config: RunConfig, load: Load) -> dict[str, int]:
    """Return what waits in host memory: image features, and where they are moved there, optimiser state and anchor."""
    moved = config.offloads and load.trained
    return {
        "image cache": int(config.cache.memory_gb * 1e9),
        "optimiser": estimate.optimizer_bytes(config, load) if moved else 0,
        "anchor": estimate.anchor_bytes(config, load) if moved else 0,
    }


def shortage(config: RunConfig, model: Described, card: Card) -> str | None:
    """Say why the run does not fit on the card, None if it does."""
    load = load_of(config, model)
    found, usable = peak(phases(config, load, card)), int(USABLE * card.gb * 1e9)
    if config.sampling.backend == "vllm":
        share, needed = config.sampling.vllm.memory_share * card.gb * 1e9, vllm_needs(config, load)
        if needed > share:
            return f"vLLM's share of {share / 1e9:.1f} GB is less than the {needed / 1e9:.1f} GB that it needs"
    return f"{found / 1e9:.1f} GB are more than {usable / 1e9:.1f} GB" if found > usable else None


def vllm_needs(config: RunConfig, load: Load) -> int:
    """Return the least that vLLM works with: its weights, one prompt and response in its cache, and ASLEEP."""
    one = load.prompt + config.sampling.max_new_tokens
    return load.text * load.size + one * estimate.token_cache_bytes(load) + ASLEEP


def remedies(config: RunConfig, model: Described, card: Card) -> Iterator[tuple[str, RunConfig]]:
    """Yield settings that lower the memory of the run, each with the configuration that it gives.

    Those that change no result come first, those that change the model or the method last.
    """
    engine, sampling, load = config.engine, config.sampling, load_of(config, model)
    least = load.prompt + sampling.max_new_tokens
    if sampling.backend == "vllm":
        share = math.ceil(100 * ROOM_FOR_VLLM * vllm_needs(config, load) / (card.gb * 1e9)) / 100
        if share <= 1:
            vllm = sampling.vllm.model_copy(update={"memory_share": share})
            yield f"sampling.vllm.memory_share={share:g}", changed(config, "sampling", vllm=vllm)
    if not config.offloads and engine.zero_stage < 3:
        yield "engine.offload_while_sampling=true", changed(config, "engine", offload_while_sampling=True)
    if not engine.checkpoint_activations:
        yield "engine.checkpoint_activations=true", changed(config, "engine", checkpoint_activations=True)
    if estimate.micro_batch_tokens(config, load) > least:
        yield f"engine.token_budget={least}", changed(config, "engine", token_budget=least)
    if sampling.backend == "hf" and sampling.kv_cache_gb > 1:
        yield "sampling.kv_cache_gb=1", changed(config, "sampling", kv_cache_gb=1.0)
    if sampling.backend == "vllm":
        yield "sampling.backend=hf", changed(config, "sampling", backend="hf")
    image = model.image
    if image.pixels and least - PROMPT_TEXT - sampling.max_new_tokens > FEW_IMAGE_TOKENS:
        pixels = FEW_IMAGE_TOKENS // image.each * image.pixels
        yield f"model.max_pixels={pixels}", changed(config, "model", max_pixels=pixels)
    if config.model.dtype == "float32":
        yield "model.dtype=bfloat16", changed(config, "model", dtype="bfloat16")
    if config.method.kl != "none":
        yield "method.kl=none", changed(config, "method", kl="none")
    if config.model.train == "full":
        yield "model.train=lora", changed(config, "model", train="lora")


def changed(config: RunConfig, section: str, **values: Any) -> RunConfig:
    """Return the configuration with other values in one section."""
    return config.model_copy(update={section: getattr(config, section).model_copy(update=values)})


def advice(config: RunConfig, model: Described, card: Card) -> list[str]:
    """Return what to change so that the run fits: each setting that is enough alone, else several together.

    Empty where they do not suffice together.
    """
    alone = [key for key, other in remedies(config, model, card) if shortage(other, model, card) is None]
    if alone:
        return alone
    taken: list[str] = []
    while shortage(config, model, card) is not None:
        names = {key.partition("=")[0] for key in taken}
        left = [(key, other) for key, other in remedies(config, model, card) if key.partition("=")[0] not in names]
        if not left:
            return []
        key, config = left[0]
        taken.append(key)
    return [" ".join(taken)]


class Seconds(NamedTuple):
    """Seconds of one step by what it does, and of both evaluations."""

    sample: float
    update: float
    move: float
    evaluate: float

    def hours(self, steps: int) -> float:
        """Return the hours of a run of `steps` steps."""
        return (steps * (self.sample + self.update + self.move) + self.evaluate) / 3600


def seconds(config: RunConfig, load: Load, card: Card, length: int) -> Seconds:
    """Return the seconds of a step where each response has `length` tokens, by the formulas of the functions below.

    An evaluation asks as many questions as the steps do, for one greedy and `evaluation.samples` sampled responses.
    """
    optim, sampling, judged = config.optim, config.sampling, config.evaluation
    asked = min(optim.steps * optim.questions_per_step, config.limit or math.inf)
    moved = sum(host_bytes(config, load).values()) - host_bytes(config, load)["image cache"]
    questions = optim.questions_per_step
    return Seconds(
        decoding_seconds(config, load, card, questions * sampling.votes.max, length),
        update_flops(config, load, length) / (MATMUL_SHARE * card.tflops * 1e12),
        2 * moved / HOST_BYTES_PER_S,
        2 * decoding_seconds(config, load, card, int(asked) * (1 + judged.samples), length),
    )


def update_flops(config: RunConfig, load: Load, length: int) -> float:
    """Return the floating-point operations of an update: factor x parameters of the text model x packed tokens.

    The factor is 2 for the forward, 4 for the backward (2 with LoRA: most weights need no gradient), 2 for the anchor's
    forward and 2 for recomputation. Attention and the tower are left out, as is what token selection saves. A
    question's prompt counts once for each micro-batch that it is divided into.
    """
    optim, sampling = config.optim, config.sampling
    backward = 4 if config.model.train == "full" else 2
    factor = 2 + backward + 2 * (config.method.kl != "none") + 2 * config.engine.checkpoint_activations
    responses = sampling.train_rollouts * length
    room = max(estimate.micro_batch_tokens(config, load) - load.prompt, length)
    tokens = math.ceil(responses / room) * load.prompt + responses
    return float(factor * load.text * optim.questions_per_step * optim.epochs * tokens)


def decoding_seconds(config: RunConfig, load: Load, card: Card, responses: int, length: int) -> float:
    """Return the seconds to decode: for each token position of the rows decoded together, weights and cache are read.

    (responses / rows) x length x (text weights + cache) / (BANDWIDTH_SHARE x bandwidth). A row's cache is half of its
    tokens on average, and its part of a prompt that `votes` responses share. Launching kernels is left out, which may
    take longer with the transformers sampler.
    """
    rows = min(rows_together(config, load, card), responses)
    cache = rows * (load.prompt / config.sampling.votes.max + length / 2) * estimate.token_cache_bytes(load)
    read = load.text * load.size + cache
    return responses / rows * length * read / (BANDWIDTH_SHARE * card.gb_per_s * 1e9)


def rows_together(config: RunConfig, load: Load, card: Card) -> int:
    """Return the responses decoded together: `batch_rows` or vLLM's `max_rows`, as far as the cache holds them."""
    sampling = config.sampling
    row = sampling.max_new_tokens * estimate.token_cache_bytes(load)
    if sampling.backend == "hf":
        return max(1, min(sampling.batch_rows, int(sampling.kv_cache_gb * 1e9) // row))
    room = sampling.vllm.memory_share * card.gb * 1e9 - load.text * load.size - ASLEEP
    # vLLM starts a row with the blocks it needs now, half of its tokens on average.
    return max(1, min(sampling.vllm.max_rows, int(room // (row / 2))))


def print_card(config: RunConfig, folder: Path, name: str) -> None:
    """Print whether the run fits on the card, by phase and part, what to change if it does not, and how long it takes.

    Raises ConfigError for a name that is not in CARDS.
    """
    card, model = find_card(name), describe(folder)
    load = load_of(config, model)
    found = phases(config, load, card)
    totals = {phase: sum(parts.values()) for phase, parts in found.items()}
    table = Table("10^9 bytes", *found, title=f"Memory on one {name}", title_justify="left")
    for part in dict.fromkeys(part for parts in found.values() for part in parts):
        table.add_row(part, *(f"{parts.get(part, 0) / 1e9:.2f}" for parts in found.values()))
    table.add_row("total", *(f"{total / 1e9:.2f}" for total in totals.values()))
    printing.console.print(table)
    why = shortage(config, model, card)
    most = f"{peak(found) / 1e9:.1f} of {USABLE * card.gb:.1f} GB that a run may take"
    printing.print_line(f"fits on one {name}: {most}" if why is None else f"does not fit on one {name}: {why}")
    for line in () if why is None else _advice_lines(advice(config, model, card)):
        printing.print_line(line)
    waiting = {part: count for part, count in host_bytes(config, load).items() if count}
    printing.print_line("in host memory: " + ", ".join(f"{part} {n / 1e9:.1f} GB" for part, n in waiting.items()))
    for line in time_lines(config, load, card):
        printing.print_line(line)


def _advice_lines(settings: Sequence[str]) -> list[str]:
    if not settings:
        return ["no setting makes it fit: take a larger card, or several with engine.zero_stage=2"]
    return ["it fits with any one of these lines:", *(f"  {setting}" for setting in settings)]


def time_lines(config: RunConfig, load: Load, card: Card) -> list[str]:
    """Return sentences on seconds a step and hours a run, for responses of TYPICAL tokens and of the limit."""
    if not load.trained:
        return []
    lines, steps, limit = [], config.optim.steps, config.sampling.max_new_tokens
    for length in sorted({min(TYPICAL, limit), limit}):
        took = seconds(config, load, card, length)
        lines.append(
            f"responses of {length} tokens: {took.sample + took.update + took.move:.0f} s a step (sample "
            f"{took.sample:.0f}, update {took.update:.0f}, moves to the host and back {took.move:.0f}); "
            f"{steps} steps and two evaluations {took.hours(steps):.1f} h"
        )
    lines.append(
        f"assumed, not measured: {MATMUL_SHARE:.0%} of {card.tflops:g} TFLOP/s in the update, {BANDWIDTH_SHARE:.0%} of "
        f"{card.gb_per_s:g} GB/s in decoding ({tokens_per_second(config, load, card, limit):,.0f} tokens/s at full "
        f"length, {rows_together(config, load, card)} rows), {HOST_BYTES_PER_S / 1e9:.0f} GB/s to the host, prompts of "
        f"{load.prompt} tokens, as many questions evaluated as trained on"
    )
    return lines


def tokens_per_second(config: RunConfig, load: Load, card: Card, length: int) -> float:
    """Return the rate of decoding, over all rows."""
    rows = rows_together(config, load, card)
    return rows * length / decoding_seconds(config, load, card, rows, length)
