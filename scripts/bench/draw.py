r"""The draw of a token per row, in blocks and from the whole cumulative distribution, side by side.

    python scripts/bench/draw.py [--vocab 151936 --rows 256 --repeats 3 --threads 1 2 --draws 1000000 --seed 0]
        [--json]

Both get the same logits in fp32 and return token, log-prob and entropy. "Whole" is how every vocabulary was drawn from
before, and small ones still are. They take turns, after one turn that is not counted. The logits are normal with
standard deviation 1 (almost uniform: a random model's) or fall with the logarithm of the rank (Zipf's law: a language
model's).

Draws that differ are counted over many uniform numbers per row: in blocks, by the sums of blocks (without deciding in
float64 what is near a boundary), whole, and by the cumulative distribution that is computed in float64 from the same
logits. Log-probs and entropies are compared with float64, too.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import timing
import torch
from drawn import markdown_table
from timing import middle, ratio
from torch import Tensor

from mm_spine.draws import generator
from mm_spine.policy.distribution import Distribution, entropy_of
from mm_spine.sampling import draw as drawing
from mm_spine.sampling.draw import Drawn, draw, draw_whole
from mm_spine.sampling.hf import LOGIT_BYTES

CPU = torch.device("cpu")
WHOLE, BLOCKS = "whole", "in blocks"
DRAWS_PER_ROW = 4000


class Case(NamedTuple):
    """Logits (R, V) and their distribution."""

    logits_RV: Tensor
    distribution: Distribution


def normal(rows: int, vocab: int, random: torch.Generator) -> Tensor:
    """Make logits of standard deviation 1."""
    return torch.randn(rows, vocab, generator=random)


def zipf(rows: int, vocab: int, random: torch.Generator) -> Tensor:
    """Make logits -1.5 log(rank), the ranks in random order, with noise of standard deviation 1."""
    falling = -1.5 * torch.arange(1, vocab + 1).float().log()
    noisy = falling + torch.randn(rows, vocab, generator=random)
    return noisy[:, torch.randperm(vocab, generator=random)]


SHAPES: dict[str, Callable[[int, int, torch.Generator], Tensor]] = {"normal": normal, "Zipf": zipf}


def make(shape: str, rows: int, vocab: int, seed: int) -> Case:
    """Make logits of one of `SHAPES`; the last 7 tokens are banned, as vision specials are."""
    random = torch.Generator().manual_seed(seed)
    return Case(SHAPES[shape](rows, vocab, random), Distribution(1.0, tuple(range(vocab - 7, vocab))))


def from_whole(logits_RV: Tensor, uniform_R: Tensor, distribution: Distribution) -> Drawn:
    """Draw as before: from the whole distribution, `LOGIT_BYTES` of logits at a time."""
    size = max(1, LOGIT_BYTES // (4 * logits_RV.shape[-1]))
    pairs = zip(logits_RV.split(size), uniform_R.split(size), strict=True)
    parts = [draw_whole(logits, uniform, distribution, (), 1.0) for logits, uniform in pairs]
    return Drawn(*(torch.cat(column) for column in zip(*parts, strict=True)))


def speed(case: Case, uniform_R: Tensor, repeats: int, threads: int) -> dict[str, float]:
    """Return seconds by the clock and of processor time of both, and their ratios."""
    torch.set_num_threads(threads)
    arguments = case.logits_RV, uniform_R, case.distribution
    steps = {WHOLE: partial(from_whole, *arguments), BLOCKS: partial(draw, *arguments)}
    timing.interleaved(steps, CPU, 1)
    taken = timing.interleaved(steps, CPU, repeats)
    found: dict[str, float] = {"threads": threads}
    for name, each in taken.items():
        found |= {f"{name}: seconds": middle(each).wall, f"{name}: processor seconds": middle(each).cpu}
    return found | {f"ratio_{kind}": ratio(taken[WHOLE], taken[BLOCKS], kind) for kind in ("wall", "cpu")}


def exact_log_probs(case: Case, row: int) -> Tensor:
    """Return a row's log-probs (1, V) in float64."""
    return case.distribution.scaled(case.logits_RV[row, None]).double().log_softmax(-1)


def differing(case: Case, draws: int, seed: int) -> dict[str, float]:
    """Count the draws that differ between blocks, whole and float64, as shares of all."""
    rows = max(1, draws // DRAWS_PER_ROW)
    pairs = dict.fromkeys(("blocks, whole", "sums of blocks, whole", "blocks, float64", "whole, float64"), 0)
    near = 0
    for row in range(rows):
        at = row % len(case.logits_RV)
        numbers = torch.from_numpy(generator(seed, "draw", row).random(DRAWS_PER_ROW))
        tokens = _tokens(case, at, numbers)
        near += int(tokens["near"].sum())
        for pair in pairs:
            one, other = pair.split(", ")
            pairs[pair] += int((tokens[one] != tokens[other]).sum())
    draws = rows * DRAWS_PER_ROW
    return {"draws": draws, "near a boundary": near / draws, **{pair: n / draws for pair, n in pairs.items()}}


def _tokens(case: Case, row: int, numbers_N: Tensor) -> dict[str, Tensor]:
    """Return what many uniform numbers draw from one row, in the three ways."""
    # In the sampler every number has a row of its own. Here they share the sums over the row, which do not depend on
    # them, and what is decided in float64 there is here, too.
    scaled_1V = case.distribution.scaled(case.logits_RV[row, None])
    _, probs_1V = drawing.probs_below(scaled_1V.clone(), torch.empty_like(scaled_1V))
    many = len(numbers_N), -1
    token, margin = drawing.invert(probs_1V.expand(many), drawing.block_sums(probs_1V).expand(many), numbers_N)
    cumulative = {"whole": scaled_1V.log_softmax(-1).double().exp().cumsum(-1),
                  "float64": scaled_1V.double().softmax(-1).cumsum(-1)}  # fmt: skip
    found = {
        name: torch.searchsorted(each[0], numbers_N * each[0, -1], right=True) for name, each in cumulative.items()
    }
    near = margin <= drawing.NEAR
    return {"sums of blocks": token, "blocks": token.where(~near, found["whole"]), "near": near, **found}


def errors(case: Case, uniform_R: Tensor, rows: int = 16) -> dict[str, float]:
    """Return the largest errors of log-probs and entropies against float64, nats, in blocks and in plain fp32."""
    found = dict.fromkeys((f"{what} {name}" for what in ("log-prob", "entropy") for name in (BLOCKS, WHOLE)), 0.0)
    for row in range(min(rows, len(case.logits_RV))):
        at = slice(row, row + 1)
        exact = exact_log_probs(case, row)
        for name, way in ((BLOCKS, draw), (WHOLE, from_whole)):
            drawn = way(case.logits_RV[at], uniform_R[at], case.distribution)
            gaps = {"log-prob": drawn.logp_R.double() - exact[0, drawn.token_R],
                    "entropy": drawn.entropy_R.double() - entropy_of(exact)}  # fmt: skip
            for what, gap in gaps.items():
                found[f"{what} {name}"] = max(found[f"{what} {name}"], float(gap.abs()))
    return found


def show(figures: dict[str, Any]) -> str:
    """Write the tables as Markdown."""
    times = (
        [shape, f"{each['threads']}", *(f"{each[f'{name}: processor seconds']:.3f}" for name in (WHOLE, BLOCKS)),
         f"{each['ratio_cpu']:.1f}", *(f"{each[f'{name}: seconds']:.3f}" for name in (WHOLE, BLOCKS)),
         f"{each['ratio_wall']:.1f}"]
        for shape, found in figures["shapes"].items() for each in found["speed"]
    )  # fmt: skip
    gaps = (
        [shape, *(f"{found['differing'][pair]:.1e}" for pair in list(found["differing"])[1:]),
         *(f"{gap:.1e}" for gap in found["errors"].values())]
        for shape, found in figures["shapes"].items()
    )  # fmt: skip
    first = next(iter(figures["shapes"].values()))
    head = (f"{name}, {kind}" for kind in ("processor s", "s") for name in (WHOLE, BLOCKS))
    names = list(head)
    columns = ("logits", "threads", *names[:2], "ratio", *names[2:], "ratio")
    return "\n\n".join([
        f"{figures['rows']} rows, vocabulary {figures['vocab']}, load average {os.getloadavg()[0]:.1f}.",
        markdown_table(columns, times),
        f"Shares of {first['differing']['draws']} draws that are near a boundary or differ; largest errors, nats.",
        markdown_table(("logits", *list(first["differing"])[1:], *first["errors"]), gaps),
    ])  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in {"vocab": 151936, "rows": 256, "repeats": 3, "draws": 1_000_000, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--json", action="store_true", help="print the figures as one last line of JSON")
    options = parser.parse_args(arguments)
    figures: dict[str, Any] = {"vocab": options.vocab, "rows": options.rows, "shapes": {}}
    uniform_R = torch.from_numpy(generator(options.seed, "uniforms").random(options.rows))
    for shape in SHAPES:
        case = make(shape, options.rows, options.vocab, options.seed)
        figures["shapes"][shape] = {
            "speed": [speed(case, uniform_R, options.repeats, threads) for threads in options.threads],
            "differing": differing(case, options.draws, options.seed),
            "errors": errors(case, uniform_R),
        }
    print(show(figures))
    if options.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
