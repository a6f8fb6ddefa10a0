"""Time the parts of the vocabulary head: the entropy pass, and the gradient part by the share of tokens selected."""

from __future__ import annotations

from functools import partial

import timing
import torch
from rich.console import Console
from timing import Step, middle, ratio, together
from workload import Sizes

from mm_spine.policy.distribution import Distribution
from mm_spine.policy.head import SelectedHead
from mm_spine.policy.model import DTYPES

ENTROPIES, ALL, CHOSEN = "entropy pass", "gradient part, all tokens", "gradient part, selected"


def measure(sizes: Sizes, device: torch.device, repeats: int) -> dict[str, float]:
    """Time the head's parts on one step's response tokens: entropy pass, and gradient part by share selected."""
    count, dtype = sizes.questions * sizes.rollouts * sizes.response_tokens, DTYPES[sizes.dtype]
    random = torch.Generator(device).manual_seed(sizes.seed)
    weight = torch.randn(sizes.vocab, sizes.hidden, generator=random, device=device).to(dtype) / sizes.hidden**0.5
    head = SelectedHead(torch.nn.Parameter(weight))
    hidden = torch.randn(count, sizes.hidden, generator=random, device=device).to(dtype)
    target = torch.randint(0, sizes.vocab, (count,), generator=random, device=device)

    def entropies() -> None:
        with torch.no_grad():
            head(hidden, target, Distribution(1.0))

    def gradient(share: float) -> None:
        at = slice(0, round(share * count))
        states = hidden[at].clone().requires_grad_()
        head(states, target[at], Distribution(1.0)).logp_S.sum().backward()
        head.weight.grad = None

    steps: dict[str, Step] = {
        ENTROPIES: entropies,
        ALL: partial(gradient, 1.0),
        CHOSEN: partial(gradient, sizes.selected),
    }
    timing.interleaved(steps, device, 1)
    taken = timing.interleaved(steps, device, max(repeats, 5))
    some, every = (together(taken[part], taken[ENTROPIES]) for part in (CHOSEN, ALL))
    return {
        **{name: middle(each).wall for name, each in taken.items()},
        "gradient_ratio": ratio(taken[CHOSEN], taken[ALL]),
        "whole_ratio": ratio(some, every),
        "gradient_ratio_cpu": ratio(taken[CHOSEN], taken[ALL], "cpu"),
        "whole_ratio_cpu": ratio(some, every, "cpu"),
    }


def show(console: Console, seconds: dict[str, float]) -> None:
    """Write the parts' seconds, and the ratios of selected tokens to all: gradient part, and with the entropy pass."""
    console.print(
        f"head: entropy pass {seconds[ENTROPIES]:.4f} s, gradient part {seconds[CHOSEN]:.4f} s of the selected and "
        f"{seconds[ALL]:.4f} s of all tokens: ratio {seconds['gradient_ratio']:.3f} "
        f"({seconds['gradient_ratio_cpu']:.3f} by processor time), both with the entropy pass "
        f"{seconds['whole_ratio']:.3f} ({seconds['whole_ratio_cpu']:.3f})"
    )
