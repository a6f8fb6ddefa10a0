r"""An optimiser step side by side: plain transformers, TRL's GRPOTrainer, and ours with each measure added in turn.

    python scripts/bench/step.py [--image-tokens 1024 --rollouts 16 --response-tokens 64 --vocab 2048 151936
        --hidden 256 --layers 4 --selected 0.2 --dtype float32 --device cpu --questions 1 --repeats 3 --seed 0]
        [--trl-only] [--times-only] [--json] [--head]

Same weights, saved rollouts, rewards, token selection, loss (PPO's clipped term at ratio 1 on the selected tokens over
all response tokens, no KL, temperature 1, no token banned), dtype, and AdamW at learning rate 0, so that every repeat
starts from the same weights. A step is timed from prepared inputs: forward, backward, gradient clipping at 1, AdamW,
zeroed gradients. Generation is not timed; TRL's work between generation and update is shown separately. TRL: KL 0, one
step per batch, so that it needs no old or reference log-probs; gradient checkpointing off. AdamW is the fused one,
TRL's default. Plain transformers takes as many rollouts at a time as have 256 MiB of response logits, TRL as many as
have 1 GiB of the logits that it projects, which on a CPU are those of prompts, too: all where the vocabulary is small.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from typing import Any, NamedTuple

import flop_counts
import head_parts
import plain_step
import timing
import torch
import trl_step
import workload
from rich.console import Console
from rich.table import Table
from timing import Step, Took, middle, ratio, together
from workload import Sizes, Work

from mm_spine.config import MethodConfig
from mm_spine.methods.tokens import Tokens
from mm_spine.policy.distribution import Distribution
from mm_spine.policy.model import DTYPES, Policy
from mm_spine.training.batch import collate, merge_identical, micro_batches, trained_groups
from mm_spine.training.loss import denominators, losses

PLAIN, TRL, CACHED = "plain transformers", "TRL GRPOTrainer", "+ image cache (warm)"
PACKED, SELECTED, WARM, COLD = "+ packed prompt", "+ select, then project", "+ cut: ours, warm", "ours, cold"
MATMUL, ENCODE = "matrix product", "tower, once per image"
TWICE, MERGED = "each response twice, kept apart", "each response twice, merged"
KEPT, SKIPPED = "half the groups unanimous, kept", "half the groups unanimous, skipped"
DISTRIBUTION = Distribution(1.0)
TOKEN_BUDGET = 10**9
PRODUCTS = 4


class Contestant(NamedTuple):
    """A model with its optimiser and, by variant, a function that leaves the step's gradients on its parameters."""

    model: Any
    optimizer: torch.optim.Optimizer
    gradients: dict[str, Step]

    def update(self, variant: str) -> None:
        """Take one optimiser step."""
        self.gradients[variant]()
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


class Bench(NamedTuple):
    """Everything set up: contestants, steps by variant, and functions that only leave gradients."""

    sizes: Sizes
    work: Work
    policy: Policy
    device: torch.device
    models: dict[str, Any]
    gradients: dict[str, Step]
    steps: dict[str, Step]
    prepare_trl: Step
    prompt_tokens: int
    tower_share: float

    def take_gradients(self, variant: str) -> dict[str, Any]:
        """Return the gradients by parameter name, and remove them from the parameters."""
        model = self.models.get(variant, self.policy.model)
        found = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        for parameter in model.parameters():
            parameter.grad = None
        return found


def options_for(sizes: Sizes) -> MethodConfig:
    """Return the options of the loss that all variants share."""
    return MethodConfig(
        share=sizes.selected, eps=workload.STD_EPS, kl="none", band_low_weight=0.0, band_high_weight=0.0
    )


def ours(policy: Policy, work: Work, options: MethodConfig, keep_all: bool = False) -> None:
    """The trainer's own path from groups with credit to gradients; `keep_all` trains on groups without a preference."""
    over = denominators(work.groups, work.tokens, options)
    if keep_all:
        kept = [merge_identical(group, chosen) for group, chosen in zip(work.groups, work.tokens, strict=True)]
    else:
        kept = trained_groups(work.groups, work.tokens, options)
    for rows in micro_batches(policy, kept, TOKEN_BUDGET):
        micro = collate(policy, rows)
        trained = policy.text(micro.packed, DISTRIBUTION)
        parts = losses(trained, micro, trained.stats.logp_NT.detach(), options, over)
        (parts.policy + parts.band + parts.kl).backward()


def also(work: Work, add: Callable[[torch.Tensor], torch.Tensor]) -> Work:
    """Compute the same loss with more tokens projected than it needs: those of `add`, by a band of weight 0."""
    return Work(work.groups, [[Tokens(t.policy_T, add(t.policy_T), None) for t in row] for row in work.tokens])


def all_tokens(mask_T: torch.Tensor) -> torch.Tensor:
    """Select every response token."""
    return torch.ones_like(mask_T)


def last_token(mask_T: torch.Tensor) -> torch.Tensor:
    """Select the last token, so that no rollout can be cut."""
    return torch.arange(len(mask_T)) == len(mask_T) - 1


def set_up(sizes: Sizes, device: torch.device, trl_only: bool = False) -> Bench:
    """Build three models with the same weights, the saved step, and the functions to measure.

    With `trl_only`, only TRL's step and ours are measured.
    """
    options, processor = options_for(sizes), workload.make_processor()
    work = workload.make_work(sizes, options)
    base = workload.make_model(sizes, device)
    ours_model, trl_model = (workload.copy_of(base) for _ in range(2))
    policy = workload.make_policy(ours_model, processor, sizes)
    for group in work.groups:
        policy.prompt(group.question)  # warm: the tower has seen every image
    rows = plain_step.make_rows(work, processor, device, DTYPES[sizes.dtype], sizes.vocab)
    trainer = trl_step.make_trainer(trl_model, processor, work, sizes, options, workload.adamw(trl_model))
    parts = trl_step.in_parts(trl_step.prepare(trainer, work), sizes.vocab)
    mine = Contestant(ours_model, workload.adamw(ours_model), _our_gradients(policy, work, options))
    gradients: dict[str, Step] = {TRL: partial(trl_step.backward, trainer, parts), WARM: mine.gradients[WARM]}
    steps: dict[str, Step] = {TRL: partial(trl_step.update, trainer, parts), WARM: partial(mine.update, WARM)}
    if not trl_only:
        plain = Contestant(base, workload.adamw(base), _plain_gradients(base, rows, work, options))
        steps = {PLAIN: partial(plain.update, PLAIN), TRL: steps[TRL], CACHED: partial(plain.update, CACHED)}
        steps |= {name: partial(mine.update, name) for name in mine.gradients}
        gradients = {**plain.gradients, **mine.gradients, TRL: gradients[TRL]}
    steps[ENCODE] = partial(plain_step.encode_images, ours_model, rows[:: len(rows) // len(work.groups)])
    models = {PLAIN: base, CACHED: base, TRL: trl_model}
    prompt_tokens = rows[0].ids_NP.shape[1] - rows[0].response_NT.shape[1]
    return Bench(sizes, work, policy, device, models, gradients, steps, partial(trl_step.prepare, trainer, work),
                 prompt_tokens, _tower_share(base, rows[0], sizes))  # fmt: skip


def _plain_gradients(model: Any, rows: list[Any], work: Work, options: MethodConfig) -> dict[str, Step]:
    tokens = sum(len(chosen.policy_T) for row in work.tokens for chosen in row)
    cached = [plain_step.cache(model, each) for each in rows]

    def padded() -> None:
        for each in rows:
            plain_step.backward(model, each, tokens, options)

    def padded_cached() -> None:
        for each, known in zip(rows, cached, strict=True):
            plain_step.backward_cached(model, each, known, tokens, options)

    return {PLAIN: padded, CACHED: padded_cached}


def _our_gradients(policy: Policy, work: Work, options: MethodConfig) -> dict[str, Step]:
    twice, unanimous = workload.doubled(work), workload.half_unanimous(work)
    works = {PACKED: also(work, all_tokens), SELECTED: also(work, last_token), WARM: work}
    gradients: dict[str, Step] = {name: partial(ours, policy, each, options) for name, each in works.items()}
    gradients |= {TWICE: gradients[WARM], MERGED: partial(ours, policy, twice, options)}
    if len(work.groups) > 1:
        gradients[KEPT] = partial(ours, policy, unanimous, options, keep_all=True)
        gradients[SKIPPED] = partial(ours, policy, unanimous, options)
    return gradients


def _tower_share(model: Any, rows: Any, sizes: Sizes) -> float:
    """Return the counted work of one image token in the tower over that in the text model's layers."""
    embeds = torch.zeros(1, sizes.image_tokens, sizes.hidden, device=model.device, dtype=model.dtype)
    with torch.no_grad():
        text = flop_counts.counted(lambda: model.model.language_model(inputs_embeds=embeds, use_cache=False))
        tower = flop_counts.counted(lambda: plain_step.encode_images(model, [rows]))
    return tower / text


SAME_LOSS = (PLAIN, TRL, CACHED, PACKED, SELECTED, WARM)


class Seen(NamedTuple):
    """What one untimed call of each variant shows; `errors` of those that have the plain one's loss.

    An error is the largest ||g - g_plain|| / ||g_plain|| of any trainable tensor, infinite where one has no gradient.
    Where plain transformers is left out, TRL's gradient takes its place.
    """

    flops: dict[str, int]
    bytes_at_peak: dict[str, int]
    errors: dict[str, float]


def inspect(bench: Bench) -> Seen:
    """Run forward and backward of each variant once, which also warms it up."""
    seen, plain = Seen({}, {}, {}), dict[str, torch.Tensor]()
    first = PLAIN if PLAIN in bench.gradients else TRL
    for name, gradients in sorted(bench.gradients.items(), key=lambda item: item[0] != first):
        counter = flop_counts.Counter()
        seen.bytes_at_peak[name] = timing.peak_memory(partial(counter, gradients), bench.device)
        seen.flops[name] = counter.flops
        found = bench.take_gradients(name)
        plain = plain or found
        if name in SAME_LOSS:
            seen.errors[name] = max(_relative(found[key], each) for key, each in plain.items())
    return seen


def _relative(ours: torch.Tensor | None, plain: torch.Tensor | None) -> float:
    if ours is None or plain is None or not plain.any():
        return float("inf")
    return float((ours.double() - plain.double()).norm() / plain.double().norm())


def measure(bench: Bench, repeats: int) -> dict[str, Any]:
    """Measure every figure: what `--json` prints."""
    flops, memory, errors = inspect(bench)
    product = flop_counts.Matmul(bench.device, DTYPES[bench.sizes.dtype])
    steps: dict[str, Step] = {**bench.steps, MATMUL: lambda: [product() for _ in range(PRODUCTS)]}
    taken = timing.interleaved(steps, bench.device, repeats)
    taken[COLD] = together(taken[WARM], taken[ENCODE])
    flops[ENCODE] = flop_counts.counted(bench.steps[ENCODE])
    flops[COLD] = flops[WARM] + flops[ENCODE]
    need = flop_counts.needed(bench.sizes, bench.work, bench.prompt_tokens)
    rate = PRODUCTS * product.flops / middle(taken.pop(MATMUL)).wall
    seconds = middle(taken[WARM]).wall
    return {
        **_ratios(taken),
        "max_relative_gradient_error": errors[WARM],
        "relative_gradient_errors": errors,
        "peak_memory_ratio_vs_trl": memory[WARM] / memory[TRL],
        "peak_memory_ratio_vs_plain": memory[WARM] / memory[PLAIN] if PLAIN in memory else None,
        "seconds": seconds,
        "flops_counted": flops[WARM],
        "flops_needed": need.total,
        "flops_counted_over_needed": flops[WARM] / need.total,
        "wall_over_needed": seconds * rate / need.total,
        "matmul_flops_per_second": rate,
        "needed": need._asdict(),
        "trl_scoring_seconds": timing.timed(bench.prepare_trl, bench.device).wall,
        "tower_share": bench.tower_share,
        "load": os.getloadavg()[0],
        "variants": {
            name: {**middle(each)._asdict(), "flops": flops[name], "peak_bytes": memory.get(name)}
            for name, each in taken.items()
        },
    }


def times(bench: Bench, repeats: int) -> dict[str, Any]:
    """Measure the seconds only: each step runs `repeats` times, after an untimed turn of all but TRL's and plain's."""
    timing.interleaved({name: step for name, step in bench.steps.items() if name not in (TRL, PLAIN, CACHED)},
                       bench.device, 1)  # fmt: skip
    taken = timing.interleaved(bench.steps, bench.device, repeats)
    taken[COLD] = together(taken[WARM], taken[ENCODE])
    found = {name: middle(each)._asdict() for name, each in taken.items()}
    return {**_ratios(taken), "load": os.getloadavg()[0], "variants": found}


def _ratios(taken: dict[str, list[Took]]) -> dict[str, float]:
    """Compute speed-ups by wall and by processor time, and what de-duplication and skipped groups save."""
    pairs = {
        "speedup_vs_trl": (TRL, WARM),
        "speedup_vs_trl_cold": (TRL, COLD),
        "speedup_vs_plain": (PLAIN, WARM),
        "speedup_vs_plain_cold": (PLAIN, COLD),
        "speedup_of_merging_identical": (TWICE, MERGED),
        "speedup_of_skipping_unanimous": (KEPT, SKIPPED),
    }
    there = {name: (taken[a], taken[b]) for name, (a, b) in pairs.items() if {a, b} <= taken.keys()}
    by_clock = {name: ratio(slow, fast) for name, (slow, fast) in there.items()}
    return by_clock | {f"{name}_cpu": ratio(slow, fast, "cpu") for name, (slow, fast) in there.items()}


def show(console: Console, bench: Bench, figures: dict[str, Any]) -> None:
    """Write the set-up, the table, and the figures that have floors."""
    console.print(_set_up_in_words(bench))
    console.print(
        f"load average {figures['load']:.1f}; matrix products {figures['matmul_flops_per_second'] / 1e9:.0f} GFLOP/s"
    )
    columns = ("step", "seconds", "TRL / this", "plain / this", "CPU seconds", "peak MiB", "GFLOP", "gradient error")
    table = Table(*columns, title="One optimiser step")
    for name, row in figures["variants"].items():
        times = [figures["variants"].get(base, {}).get("wall", math.nan) / row["wall"] for base in (TRL, PLAIN)]
        peak = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:.0f}"
        error = figures["relative_gradient_errors"].get(name)
        table.add_row(
            name, f"{row['wall']:.3f}", *(f"{x:.2f}" for x in times), f"{row['cpu']:.3f}", peak,
            f"{row['flops'] / 1e9:.1f}", "" if error is None else f"{error:.0e}",
        )  # fmt: skip
    console.print(table)
    console.print(_in_words(figures))


def _set_up_in_words(bench: Bench) -> str:
    sizes, tower = bench.sizes, workload.fit_tower(bench.sizes)
    selected = sum(int(t.policy_T.sum()) for row in bench.work.tokens for t in row)
    return (
        f"{sizes.questions} question(s), image of {sizes.image_tokens} tokens, prompt {bench.prompt_tokens} tokens, "
        f"{sizes.rollouts} distinct rollouts of {sizes.response_tokens} tokens, mixed rewards, {selected} tokens "
        f"selected at random positions ({sizes.selected:.0%}), KL 0\n"
        f"text: vocabulary {sizes.vocab}, hidden {sizes.hidden} x {sizes.layers} layers, MLP {sizes.intermediate}, "
        f"{sizes.dtype}, {bench.device.type}, {torch.get_num_threads()} threads\n"
        f"tower: {tower.depth} layers of width {tower.hidden}, MLP {tower.intermediate}, windows of "
        f"{workload.WINDOW_TOKENS} x {workload.WINDOW_TOKENS} image tokens; an image token costs it "
        f"{bench.tower_share:.2f} of what it costs the text model (counted)"
    )


def _in_words(figures: dict[str, Any]) -> str:
    need = {name: each / 1e9 for name, each in figures["needed"].items()}
    apart = {"identical rollouts merged": "merging_identical", "unanimous groups skipped": "skipping_unanimous"}
    gains = {words: figures.get(f"speedup_of_{name}") for words, name in apart.items()}
    return (
        f"needed {figures['flops_needed'] / 1e9:.1f} GFLOP: trunk {need['trunk']:.1f}, attention "
        f"{need['attention']:.1f}, head {need['head']:.1f}; counted / needed "
        f"{figures['flops_counted_over_needed']:.2f}; wall / (needed / matmul rate) {figures['wall_over_needed']:.2f}\n"
        f"faster than TRL {figures['speedup_vs_trl']:.2f} warm, {figures['speedup_vs_trl_cold']:.2f} cold, by "
        f"processor time {figures['speedup_vs_trl_cpu']:.2f} and {figures['speedup_vs_trl_cold_cpu']:.2f}; than plain "
        f"{figures.get('speedup_vs_plain', math.nan):.2f} warm, {figures.get('speedup_vs_plain_cold', math.nan):.2f} "
        f"cold; peak memory {figures['peak_memory_ratio_vs_trl']:.3f} of TRL's\n"
        f"apart: {', '.join(f'{words} {gain:.2f}' for words, gain in gains.items() if gain is not None)}\n"
        f"TRL between generation and update, not timed above: {figures['trl_scoring_seconds']:.3f} s"
    )


def times_in_words(bench: Bench, figures: dict[str, Any]) -> str:
    """Write the processor seconds of each step and the speed-ups over TRL by processor time."""
    steps = (f"{name}: {each['cpu']:.3f} processor seconds" for name, each in figures["variants"].items())
    faster = f"faster than TRL {figures['speedup_vs_trl_cpu']:.2f} warm, {figures['speedup_vs_trl_cold_cpu']:.2f} cold"
    return "\n".join([_set_up_in_words(bench), *steps, f"{faster}; load average {figures['load']:.1f}"])


def parse(arguments: list[str]) -> tuple[argparse.Namespace, list[Sizes]]:
    """Parse the command line into options and the sizes for each vocabulary."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    others = [field for field in fields(Sizes) if field.name != "vocab"]
    for field in others:
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    parser.add_argument("--vocab", type=int, nargs="+", default=[2048, 151936], help="one after the other")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print the figures of each vocabulary as a line of JSON")
    parser.add_argument("--trl-only", action="store_true", help="measure TRL's step and ours, nothing between them")
    parser.add_argument("--times-only", action="store_true", help="leave out memory, FLOP and gradient errors")
    parser.add_argument("--head", action="store_true", help="measure the head's parts, too")
    options = parser.parse_args(arguments)
    sizes = Sizes(**{field.name: getattr(options, field.name) for field in others})
    return options, [replace(sizes, vocab=vocab) for vocab in options.vocab]


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    options, cases = parse(sys.argv[1:] if arguments is None else arguments)
    warnings.filterwarnings("ignore", category=UserWarning)
    console, device = Console(width=120), torch.device(options.device)
    for sizes in cases:
        bench = set_up(sizes, device, options.trl_only)
        figures = times(bench, options.repeats) if options.times_only else measure(bench, options.repeats)
        console.print(times_in_words(bench, figures)) if options.times_only else show(console, bench, figures)
        if options.head:
            figures["head"] = head_parts.measure(sizes, device, options.repeats)
            head_parts.show(console, figures["head"])
        if options.json:
            print(json.dumps({"sizes": vars(sizes), **figures}), flush=True)
        # Models, trainers and optimisers refer to each other; they go before the next are made.
        del bench
        gc.collect()


if __name__ == "__main__":
    main()
