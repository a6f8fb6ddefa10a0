"""What runs inside vLLM, next to its model: imported by vLLM's processes and, once vLLM is there, by ours."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor
from vllm import SamplingParams
from vllm.platforms import current_platform
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

Change = Callable[[list[int], Tensor], Tensor]
"""(tokens drawn so far, logits (V,)) -> the logits to draw from."""


class LogitsChange(AdapterLogitsProcessor):
    """What vLLM has no parameter for, for requests that say so in `extra_args`.

    `barred` token ids cannot be drawn first; `divide_by` is the temperature that greedy log-probs are at.
    """

    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(self, params: SamplingParams) -> Change | None:
        """The request's own change, None for the usual request."""
        wanted: dict[str, Any] = params.extra_args or {}
        barred, divide_by = list(wanted.get("barred", ())), float(wanted.get("divide_by", 1.0))
        if not barred and divide_by == 1.0:
            return None

        def change(drawn: list[int], logits_V: Tensor) -> Tensor:
            if barred and not drawn:
                logits_V[barred] = float("-inf")
            return logits_V if divide_by == 1.0 else logits_V / divide_by

        return change


def ignore_interrupts(worker: Any) -> None:
    """A Ctrl-C reaches this process too; the trainer answers it, and ends its step with the engine alive."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def load_weights(worker: Any, weights: Iterable[tuple[str, Tensor]]) -> None:
    """Take over `weights`, by checkpoint names, into the model of `worker`."""
    worker.reload_weights(weights_iterator=iter(weights))


def load_file(worker: Any, path: str) -> None:
    """Take over the weights of a safetensors file, one tensor at a time."""
    with safe_open(path, framework="pt") as file:
        load_weights(worker, ((name, file.get_tensor(name)) for name in file.keys()))  # noqa: SIM118


def rewinding(usual: Callable[..., Any]) -> Callable[..., Any]:
    """vLLM's bookkeeping after a forward, made fit for a CPU.

    Each chunk of a prompt that is cut draws a token that nobody takes. vLLM then winds the request's generator back by
    its offset, which only CUDA's have: here it is seeded again and repeats the draws taken, those before a preemption.
    """

    def bookkeeping(runner: Any, *arguments: Any, **named: Any) -> Any:
        batch = runner.input_batch
        cut = np.flatnonzero(runner.discard_request_mask.np[: batch.num_reqs]).tolist()
        generators = {i: batch.generators.pop(i) for i in cut if i in batch.generators}
        found = usual(runner, *arguments, **named)
        for i, generator in generators.items():
            generator.manual_seed(generator.initial_seed())
            for _ in runner.requests[batch.req_ids[i]].output_token_ids:
                torch.randint(2**31, (1,), generator=generator)
        batch.generators.update(generators)
        return found

    return bookkeeping


if current_platform.is_cpu():
    from vllm.v1.worker import cpu_worker  # changes torch when imported, so on a CPU alone

    # Compiled by g++, the ranks that nobody reads here would take seconds in each process, and a compiler.
    type(current_platform).simple_compile_backend = "eager"
    runner: Any = vars(cpu_worker)["CPUModelRunner"]
    runner._bookkeeping_sync = rewinding(runner._bookkeeping_sync)
