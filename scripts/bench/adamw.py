"""AdamW's step on a CPU: torch's default, over lists of tensors, and fused, side by side.

    OMP_NUM_THREADS=1 python scripts/bench/adamw.py [--repeats 5]

Processor seconds, median of turns that alternate; and whether the weights are the same to the bit as with the default.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial

import timing
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

Shapes = Sequence[tuple[int, int]]

KINDS: dict[str, dict[str, bool]] = {"default": {}, "lists": {"foreach": True}, "fused": {"fused": True}}
_LAYERS = [(256, 256)] * 16 + [(688, 256)] * 12
CASES: dict[str, Shapes] = {
    "width 256, vocabulary 2,048": [(2048, 256), *_LAYERS],
    "width 256, vocabulary 151,936": [(151936, 256), *_LAYERS],
    "LoRA of rank 16 on a 3B": [
        pair
        for inputs, outputs in ((2048, 2048), (2048, 2048), (2048, 256), (2048, 256), (2048, 11008), (2048, 11008),
                                (11008, 2048))
        for pair in ((16, inputs), (outputs, 16))
    ]
    * 36,
}  # fmt: skip


def optimiser(
    shapes: Sequence[tuple[int, int]], options: dict[str, bool]
) -> tuple[torch.optim.AdamW, list[nn.Parameter]]:
    """Return AdamW over random weights with random gradients, the same for the same shapes, after one step."""
    random = torch.Generator().manual_seed(0)
    weights = [nn.Parameter(torch.randn(shape, generator=random)) for shape in shapes]
    for weight in weights:
        weight.grad = torch.randn(weight.shape, generator=random)
    made = torch.optim.AdamW(weights, lr=1e-4, weight_decay=0.01, **options)
    made.step()
    return made, weights


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    table = Table("weights", "parameters", *(f"{kind}, ms" for kind in KINDS), "default / fused", "fused: same bits")
    for name, shapes in CASES.items():
        made = {kind: optimiser(shapes, options) for kind, options in KINDS.items()}
        steps: dict[str, timing.Step] = {kind: partial(each.step) for kind, (each, _) in made.items()}
        taken = timing.interleaved(steps, torch.device("cpu"), repeats)
        pairs = zip(made["default"][1], made["fused"][1], strict=True)
        same = all(torch.equal(one, other) for one, other in pairs)
        seconds = (f"{1000 * timing.middle(taken[kind]).cpu:.1f}" for kind in KINDS)
        count = sum(weight.numel() for weight in made["fused"][1])
        gain = timing.ratio(taken["default"], taken["fused"], "cpu")
        table.add_row(name, f"{count:,}", *seconds, f"{gain:.1f}", "yes" if same else "no")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
