"""What runs inside vLLM, beside its model.

vLLM's processes import this module by its path, so its functions and its class must stay importable from here. It
imports vLLM; import it only after `installed.import_vllm`.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm import SamplingParams
from vllm.config import set_current_vllm_config
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.platforms import current_platform
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

from mm_spine.sampling.vllm.transfer import Address, Incoming, Piece, open_bucket

Change = Callable[[list[int], Tensor], Tensor]
"""(tokens drawn so far, logits (V,)) -> the logits to draw from."""


class LogitsChange(AdapterLogitsProcessor):
    """Change the logits of requests as their `extra_args` say, where vLLM has no parameter for it.

    `barred` token ids cannot be drawn first. `divide_by` is the temperature of greedy log-probs, which vLLM would
    compute at temperature 1.
    """

    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(self, params: SamplingParams) -> Change | None:
        """Return the request's change, None for a request without one."""
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
    """Ignore Ctrl-C in this process."""
    # The terminal sends it to every process. The trainer answers it, and needs the engine to end its step.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def load_weights(worker: Any, weights: Iterable[tuple[str, Tensor]]) -> None:
    """Load `weights`, by their names in the checkpoint, into the model of `worker`."""
    worker.reload_weights(weights_iterator=iter(weights))


def begin_weights(worker: Any, address: Address) -> None:
    """Begin to load weights, from the bucket at `address`."""
    initialize_layerwise_reload(worker.get_model())
    worker.mm_spine_incoming = Incoming(open_bucket(address), worker.device)


def load_bucket(worker: Any, pieces: Sequence[Piece]) -> None:
    """Load what the bucket holds."""
    with set_current_vllm_config(worker.vllm_config):
        worker.get_model().load_weights(worker.mm_spine_incoming.weights(pieces))
    # The bucket is filled again once this returns.
    if worker.device.type == "cuda":
        torch.cuda.synchronize(worker.device)


def finish_weights(worker: Any) -> None:
    """Finish loading, and drop what was computed with the old weights, as `GPUModelRunner.reload_weights` does."""
    incoming, worker.mm_spine_incoming = worker.mm_spine_incoming, None
    if incoming.begun:
        raise RuntimeError(f"parts of {', '.join(incoming.begun)} did not arrive")
    with set_current_vllm_config(worker.vllm_config):
        finalize_layerwise_reload(worker.get_model(), worker.model_config)
    runner = worker.model_runner
    runner.reset_lora_state()
    runner.reset_encoder_cache()
    runner.reset_mm_cache()


def rewinding(usual: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap vLLM's bookkeeping after a forward so that it rewinds random generators on a CPU."""
    # When a prompt is computed in chunks, each chunk draws a token that is discarded. vLLM then rewinds the request's
    # generator by its offset, which only CUDA's generators have. Here the generator is seeded again and repeats the
    # draws that were kept, which are there after a preemption.

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
    # Importing it changes torch, so import it only on a CPU.
    from vllm.v1.worker import cpu_worker

    # vLLM compiles the ranks of log-probs with g++, which takes seconds in each process and needs a compiler. The
    # ranks are not used here.
    type(current_platform).simple_compile_backend = "eager"
    runner: Any = vars(cpu_worker)["CPUModelRunner"]
    runner._bookkeeping_sync = rewinding(runner._bookkeeping_sync)
