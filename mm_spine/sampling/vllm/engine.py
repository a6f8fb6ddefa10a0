"""One vLLM engine for a policy, started with dummy weights and then given the policy's own."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import tempfile
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from mm_spine import distributed
from mm_spine.config import ConfigError, RunStopped, VLLMConfig
from mm_spine.policy.model import Policy
from mm_spine.sampling.vllm.environment import starting_environment
from mm_spine.sampling.vllm.installed import import_vllm
from mm_spine.sampling.vllm.transfer import send
from mm_spine.sampling.vllm.weights import most_bytes, replaces_all, served_weights

log = logging.getLogger(__name__)

BLOCK = 32
"""Tokens of a cache block. Requests share a prompt's keys and values in whole blocks."""


class SamplerDied(RunStopped):
    """vLLM failed while it started, took over weights, or sampled."""


class VLLMEngine:
    """vLLM with the weights of a policy.

    It runs in this process, or in processes of its own for several cards or ranks, or if the config says so.
    `version` counts how often the weights were taken over, and `policy_version` is the policy's number for them;
    `stale` says that they may have changed since.
    """

    def __init__(self, policy: Policy, config: VLLMConfig) -> None:
        """Start vLLM. Raises ConfigError for settings that cannot work here, SamplerDied if vLLM does not start."""
        self.config = config
        self.cuda = policy.device.type == "cuda"
        self.own_process = config.own_process or config.tensor_parallel > 1 or distributed.world_size() > 1
        self.version = 0
        self.policy_version = policy.version
        self.stale = True
        self._folder = tempfile.TemporaryDirectory(prefix="mm-spine-vllm-")
        weakref.finalize(policy, self._folder.cleanup)
        folder = Path(self._folder.name)
        with (
            _failing("starting"),
            starting_environment(folder, policy.device, self.own_process, config.tensor_parallel),
        ):
            import_vllm()
            _check_head_width(policy)
            _write_model(policy, folder)
            self._llm: Any = _start(policy, self._settings(policy))
            if self.own_process:
                self._call_workers("ignore_interrupts")
        self._workers = multiprocessing.active_children() if self.own_process else []
        self._asleep = False
        self._given: set[int] = set()
        where = ", in its own process" if self.own_process else ""
        log.info("vLLM: room for %d tokens a request%s", self.max_tokens, where)

    @property
    def max_tokens(self) -> int:
        """The most tokens of a request, prompt and response: the context, or less if the cache has no room for it."""
        return int(self._llm.model_config.max_model_len)

    @contextmanager
    def ready(self, policy: Policy) -> Iterator[None]:
        """Within the context, hold the policy's current weights. On a card, the engine is awake only within it."""
        with _failing("taking over the weights", self._workers):
            self._wake(policy)
        try:
            yield
        except BaseException:
            # Requests left behind would be drawn in the next phase.
            with suppress(Exception):
                self._llm.llm_engine.abort_request([str(number) for number in self._given])
            self._given.clear()
            raise
        with _failing("falling asleep", self._workers):
            self._sleep(policy)

    def enqueue(self, prompts: Sequence[Any], params: Sequence[Any]) -> list[int]:
        """Give vLLM requests; return their numbers, which rise. Call it within `ready`. Raises SamplerDied."""
        with _failing("sampling", self._workers):
            # vLLM appends random letters to the number that it counts.
            names = self._llm.enqueue(prompts, params, use_tqdm=False)
            numbers = [int(name.partition("-")[0]) for name in names]
        self._given.update(numbers)
        return numbers

    def finished(self) -> list[tuple[int, Any]]:
        """Let vLLM go on until requests are finished; return their numbers and outputs, by number.

        Raises SamplerDied.
        """
        with _failing("sampling", self._workers):
            outputs: list[Any] = []
            while not outputs:
                if not self._llm.llm_engine.has_unfinished_requests():
                    raise RuntimeError(f"{len(self._given)} requests were lost")
                outputs = [output for output in self._llm.llm_engine.step() if output.finished]
            found = sorted((int(output.request_id), output) for output in outputs)
        self._given.difference_update(number for number, _ in found)
        return found

    def _take_over(self, policy: Policy) -> None:
        """Load the policy's weights if they may have changed, and drop what was computed with the old ones."""
        if not self.stale:
            return
        weights = served_weights(policy, trained_only=self.version > 0)
        if self.own_process:
            # Beside other ranks, an engine's cards begin with the one that its rank trains on.
            card = 0 if distributed.world_size() > 1 else policy.device.index or 0
            send(weights, most_bytes(policy), policy.device, self._call_workers, card)
        else:
            self._call_workers("load_weights", weights)
        # All three caches: without the first, old keys are used in silence; without the others the engine never
        # returns.
        self._llm.reset_prefix_cache()
        self._llm.reset_mm_cache()
        self._llm.llm_engine.reset_encoder_cache()
        self.version += 1
        self.policy_version = policy.version
        self.stale = False

    def _call_workers(self, name: str, *arguments: Any) -> None:
        """Run the function `name` of the module `worker` in each of vLLM's workers."""
        # Not at the top: the module imports vLLM. Other processes find its functions by their import path.
        from mm_spine.sampling.vllm import worker

        self._llm.collective_rpc(getattr(worker, name), args=arguments)

    def _wake(self, policy: Policy) -> None:
        """Take the card's memory back if the engine sleeps, and the policy's weights if they may have changed."""
        if self._asleep:
            # vLLM cannot take the memory that the trainer's allocator keeps after a step.
            torch.cuda.empty_cache()
            self._llm.wake_up(tags=["weights"])
        self._take_over(policy)
        if self._asleep:
            # Last, so that what the transfer needs for a moment lies where keys and values will.
            self._llm.wake_up(tags=["kv_cache"])
            self._asleep = False

    def _sleep(self, policy: Policy) -> None:
        """Leave the card to the trainer: drop keys and values, and move the weights to the host.

        Where training replaces all weights they are dropped, too, and the policy's are taken over again.
        """
        if self.cuda:
            # Divided weights are taken over where all ranks are, which a later waking is not.
            dropped = replaces_all(policy) and not policy.partitioned
            self._llm.sleep(level=2 if dropped else 1)
            self.stale = self.stale or dropped
            self._asleep = True

    def _settings(self, policy: Policy) -> dict[str, Any]:
        """Return the arguments of `vllm.LLM`."""
        from mm_spine.sampling.vllm import worker

        config = self.config
        settings: dict[str, Any] = {
            "model": self._folder.name,
            "load_format": "dummy",
            "dtype": str(policy.text.head.weight.dtype).removeprefix("torch."),
            "generation_config": "vllm",
            "tensor_parallel_size": config.tensor_parallel,
            "distributed_executor_backend": "mp" if self.own_process else "uni",
            "max_model_len": -1,
            "max_num_seqs": config.max_rows,
            "block_size": BLOCK,
            "logprobs_mode": "processed_logprobs",
            "logits_processors": [worker.LogitsChange],
            "enforce_eager": config.enforce_eager or not self.cuda,
            "disable_log_stats": True,
        }
        if self.cuda:
            settings |= {"enable_sleep_mode": True, "gpu_memory_utilization": config.memory_share}
        else:
            settings |= {"kv_cache_memory_bytes": config.kv_cache_gb * 2**30}
        if policy.tower is not None:
            # Features instead of pixels. At a limit of 0 images vLLM leaves the tower out, and DeepStack with it, so
            # models with DeepStack keep both.
            deepstack = len(policy.family.mergers) > 1
            limits = {"image": 1000 if deepstack else 0, "video": 0}
            settings |= {"enable_mm_embeds": True, "limit_mm_per_prompt": limits, "skip_mm_profiling": True}
        return settings


def _start(policy: Policy, settings: Mapping[str, Any]) -> Any:
    """Return a started `vllm.LLM` that stops when `policy` is collected."""
    # When a process dies, vLLM would print every prompt, image features included. It would reset a level.
    logging.getLogger("vllm.logging_utils.dump_input").addFilter(lambda record: False)
    threads = torch.set_num_threads
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            llm = import_vllm().LLM(**settings)
    finally:
        # vLLM's CPU worker replaces the function by one that does nothing.
        torch.set_num_threads = threads
    # vLLM freezes all objects, ours too: the cycles of a policy that is no longer used would never be collected.
    gc.unfreeze()
    client = llm.llm_engine.engine_core
    client._finalizer.detach()
    weakref.finalize(policy, _stop, client.engine_core)
    return llm


def _stop(core: Any) -> None:
    """Stop an engine as vLLM does, but keep torch's process groups, which the trainer and other engines still need."""
    core.model_executor.shutdown()
    core.scheduler.shutdown()


def _write_model(policy: Policy, folder: Path) -> None:
    """Write the configuration and the processor, and no weights."""
    config = policy.model.config
    config.architectures = config.architectures or [type(policy.model).__name__]
    config.save_pretrained(folder)
    policy.processor.save_pretrained(folder)


def _check_head_width(policy: Policy) -> None:
    """Raise ConfigError if vLLM's attention on a CPU does not know the width of the model's heads."""
    if policy.device.type != "cpu":
        return
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    found = int(policy.text.language_model.layers[0].self_attn.head_dim)
    known = CPUAttentionBackend.get_supported_head_sizes()
    if found not in known:
        raise ConfigError(
            f"sampling.backend=vllm: this model's attention heads are {found} wide, and vLLM on a CPU computes "
            f"{', '.join(map(str, known))} only; use sampling.backend=hf"
        )


@contextmanager
def _failing(doing: str, workers: Sequence[BaseProcess] = ()) -> Iterator[None]:
    """Turn any error of vLLM into SamplerDied, which says what vLLM was `doing` and which of `workers` ended."""
    try:
        yield
    except (ConfigError, RunStopped):
        raise
    except Exception as error:
        first = (str(error).strip() or "no message").splitlines()[0]
        gone = "".join(f"; {p.name} ended with code {p.exitcode}" for p in workers if p.exitcode is not None)
        raise SamplerDied(
            f"vLLM failed while {doing} ({type(error).__name__}: {first}{gone}); what the run has written is whole: "
            "go on from its last checkpoint with --resume, or sample with sampling.backend=hf in a new folder"
        ) from error
