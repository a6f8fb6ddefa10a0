"""Which operations our optimiser step spends its time in, by torch's profiler, one thread.

    OMP_NUM_THREADS=1 python scripts/bench/step_profile.py --image-tokens 1024 --rollouts 32 --response-tokens 16
        --vocab 2048 [151936] [--operations 12]

The step is that of `step.py`, warm, with the options of that script. Times are an operation's own, without those that
it calls, by the clock of one thread: shares mean something on a busy machine, seconds do not.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Mapping

import step
import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

KINDS: Mapping[str, tuple[str, ...]] = {
    "matrix products": ("mm", "addmm", "bmm", "linear"),
    "attention, forward": ("_scaled_dot_product_flash_attention_for_cpu", "_flash_attention_forward"),
    "attention, backward": ("_scaled_dot_product_flash_attention_for_cpu_backward", "_flash_attention_backward"),
    "copies, conversions, gathers": (
        "copy_", "clone", "cat", "index", "index_select", "index_put_", "_index_put_impl_", "gather", "scatter_add_",
        "fill_", "zero_", "embedding_dense_backward", "index_add_", "index_copy_", "_to_copy",
    ),
    "optimiser": ("_fused_adamw_", "_foreach_norm", "_foreach_mul_", "linalg_vector_norm"),
}  # fmt: skip
"""Kind -> names of its operations in `aten`; all others work element by element or on rows."""

OTHER = "element by element"


def kind_of(operation: str) -> str:
    """Return the kind that an operation belongs to."""
    name = operation.removeprefix("aten::")
    return next((kind for kind, names in KINDS.items() if name in names), OTHER)


def operations(bench: step.Bench) -> dict[str, float]:
    """Return operation -> its own seconds in one step, after one that is not measured."""
    bench.steps[step.WARM]()
    with profile(activities=[ProfilerActivity.CPU]) as watched:
        bench.steps[step.WARM]()
    return {row.key: row.self_cpu_time_total / 1e6 for row in watched.key_averages()}


def show(console: Console, found: Mapping[str, float], most: int) -> None:
    """Write the share of each kind, and of the operations that take most."""
    total, kinds = sum(found.values()), Counter[str]()
    for name, seconds in found.items():
        kinds[kind_of(name)] += seconds
    table = Table("kind", "seconds", "share, %", title=f"{total:.2f} seconds")
    for kind, seconds in kinds.most_common():
        table.add_row(kind, f"{seconds:.3f}", f"{100 * seconds / total:.1f}")
    console.print(table)
    table = Table("operation", "kind", "share, %")
    for name, seconds in sorted(found.items(), key=lambda each: -each[1])[:most]:
        table.add_row(name, kind_of(name), f"{100 * seconds / total:.1f}")
    console.print(table)


def main() -> None:
    """Profile and print."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--operations", type=int, default=12)
    own, others = parser.parse_known_args(sys.argv[1:])
    _, cases = step.parse(others)
    console = Console(width=120)
    for sizes in cases:
        bench = step.set_up(sizes, torch.device("cpu"), trl_only=True)
        console.print(f"{sizes}")
        show(console, operations(bench), own.operations)


if __name__ == "__main__":
    main()
