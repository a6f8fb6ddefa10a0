"""What runs inside vLLM, next to its model: imported by vLLM's processes and, once vLLM is there, by ours."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from safetensors import safe_open
from torch import Tensor
from vllm import SamplingParams
from vllm.platforms import current_platform
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

if current_platform.is_cpu():
    # Compiled by g++, the ranks that nobody reads here would take seconds in each process, and a compiler.
    type(current_platform).simple_compile_backend = "eager"

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


def load_weights(worker: Any, weights: Iterable[tuple[str, Tensor]]) -> None:
    """Take over `weights`, by checkpoint names, into the model of `worker`."""
    worker.reload_weights(weights_iterator=iter(weights))


def load_file(worker: Any, path: str) -> None:
    """Take over the weights of a safetensors file, one tensor at a time."""
    with safe_open(path, framework="pt") as file:
        load_weights(worker, ((name, file.get_tensor(name)) for name in file.keys()))  # noqa: SIM118
