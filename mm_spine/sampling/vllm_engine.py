"""One vLLM engine for a policy: started with dummy weights, then fed with the policy's own."""

from __future__ import annotations

import gc
import importlib
import logging
import multiprocessing
import os
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from mm_spine import compat, distributed
from mm_spine.config import ConfigError, RunStopped, VLLMConfig
from mm_spine.policy.model import Policy
from mm_spine.sampling.vllm_weights import HEAD, served_weights

log = logging.getLogger(__name__)

BLOCK = 32
"""Tokens of a cache block: what is shared of a prompt is a multiple of it."""

SHARED_MEMORY = Path("/dev/shm")


class SamplerDied(RunStopped):
    """vLLM failed while it started, took over weights, or sampled."""


class VLLMEngine:
    """vLLM with `policy`'s weights, in this process; in processes of its own where several cards or ranks, or the
    config, ask for it. `version` counts how often the weights were taken over."""

    def __init__(self, policy: Policy, config: VLLMConfig) -> None:
        self.config = config
        self.cuda = policy.device.type == "cuda"
        self.apart = config.own_process or config.tensor_parallel > 1 or distributed.world_size() > 1
        self.version = 0
        self.stale = True
        _check_cards(config.tensor_parallel, distributed.world_size(), torch.cuda.device_count() if self.cuda else None)
        self._folder = tempfile.TemporaryDirectory(prefix="mm-spine-vllm-")
        weakref.finalize(policy, self._folder.cleanup)
        with _failing("starting"), _environment(self._folder.name, policy.device, self.apart):
            import_vllm()
            _check_heads(policy)
            _write_model(policy, Path(self._folder.name))
            self._llm: Any = _start(policy, self._settings(policy))
            if self.apart:
                self._rpc("ignore_interrupts")
        self._workers = multiprocessing.active_children() if self.apart else []
        self._asleep = False
        log.info("vLLM: room for %d tokens a request%s", self.max_tokens, ", in its own process" if self.apart else "")

    @property
    def max_tokens(self) -> int:
        """Of a request, prompt and response together: the context, or less where the cache has no room for it."""
        return int(self._llm.model_config.max_model_len)

    @contextmanager
    def ready(self, policy: Policy) -> Iterator[None]:
        """Inside, the engine has the policy's weights as they now are; on a card it is awake inside only."""
        with _failing("taking over the weights", self._workers):
            self._wake()
            self._take_over(policy)
        yield
        with _failing("falling asleep", self._workers):
            self._sleep()

    def generate(self, prompts: Sequence[Any], params: Sequence[Any]) -> list[Any]:
        """vLLM's outputs in order; when it is `ready`. Raises SamplerDied."""
        with _failing("sampling", self._workers):
            found: list[Any] = self._llm.generate(prompts, params, use_tqdm=False)
        return found

    def _take_over(self, policy: Policy) -> None:
        """The policy's weights, if they may have changed, and none of what the old ones left in caches."""
        if not self.stale:
            return
        weights = served_weights(policy, trained_only=self.version > 0)
        self._send_file(weights) if self.apart else self._rpc("load_weights", weights)
        # All three: without the first old keys are used in silence, without the others the engine waits for ever.
        self._llm.reset_prefix_cache()
        self._llm.reset_mm_cache()
        self._llm.llm_engine.reset_encoder_cache()
        self.version += 1
        self.stale = False

    def _send_file(self, weights: Iterator[tuple[str, Any]]) -> None:
        from safetensors.torch import save_file

        tensors = {name: tensor.cpu() for name, tensor in weights}
        if HEAD in tensors:  # it may share its memory with the embedding, which no file can say
            tensors[HEAD] = tensors[HEAD].clone()
        size = sum(tensor.nbytes for tensor in tensors.values())
        with tempfile.NamedTemporaryFile(suffix=".safetensors", dir=_place_for(size)) as file:
            save_file(tensors, file.name)
            self._rpc("load_file", file.name)

    def _rpc(self, name: str, *arguments: Any) -> None:
        from mm_spine.sampling import vllm_worker

        self._llm.collective_rpc(getattr(vllm_worker, name), args=arguments)

    def _wake(self) -> None:
        if self._asleep:
            torch.cuda.empty_cache()  # of what the trainer's allocator keeps after a step vLLM can take nothing
            self._llm.wake_up()
            self._asleep = False

    def _sleep(self) -> None:
        """Leave the card to the trainer: weights to the host, keys and values dropped."""
        if self.cuda:
            self._llm.sleep(level=1)
            self._asleep = True

    def _settings(self, policy: Policy) -> dict[str, Any]:
        from mm_spine.sampling import vllm_worker

        config = self.config
        return {
            "model": self._folder.name,
            "load_format": "dummy",
            "dtype": str(policy.text.head.weight.dtype).removeprefix("torch."),
            "generation_config": "vllm",
            "tensor_parallel_size": config.tensor_parallel,
            "distributed_executor_backend": "mp" if self.apart else "uni",
            "max_model_len": -1,
            "max_num_seqs": config.max_rows,
            "block_size": BLOCK,
            "logprobs_mode": "processed_logprobs",
            "logits_processors": [vllm_worker.LogitsChange],
            "enforce_eager": config.enforce_eager or not self.cuda,
            "disable_log_stats": True,
            **(_card(config) if self.cuda else {"kv_cache_memory_bytes": config.kv_cache_gb * 2**30}),
            **_images(policy),
        }


def _place_for(size: int) -> Path | None:
    """Shared memory if a file of `size` bytes fits (a container has 64 MB by default), else where such files usually
    lie."""
    return SHARED_MEMORY if SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free > 2 * size else None


def _card(config: VLLMConfig) -> dict[str, Any]:
    return {"enable_sleep_mode": True, "gpu_memory_utilization": config.memory_share}


def _images(policy: Policy) -> dict[str, Any]:
    """Features instead of pixels. At a limit of 0 vLLM leaves the tower out, and DeepStack with it: Qwen3-VL keeps
    both."""
    if policy.tower is None:
        return {}
    deepstack = len(policy.family.mergers) > 1
    limits = {"image": 1000 if deepstack else 0, "video": 0}
    return {"enable_mm_embeds": True, "limit_mm_per_prompt": limits, "skip_mm_profiling": True}


def import_vllm() -> Any:
    """The package, without its notices. Raises what it raises.

    In a thread: vLLM keeps an exception of its import, whose stack would keep the caller's policy, and so the engine.
    """
    level = os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    logging.getLogger("vllm").setLevel(level.upper())  # it heeds the variable only once an engine starts
    with warnings.catch_warnings(), ThreadPoolExecutor(1) as thread:
        warnings.simplefilter("ignore")
        return thread.submit(_import).result()


def _import() -> Any:
    package = importlib.import_module("vllm")
    importlib.import_module("vllm.entrypoints.llm")  # the most of it, which `vllm` puts off
    return package


def _start(policy: Policy, settings: Mapping[str, Any]) -> Any:
    # When a process dies it would print every prompt, image features included. A level would be reset by vLLM.
    logging.getLogger("vllm.logging_utils.dump_input").addFilter(lambda record: False)
    threads = torch.set_num_threads
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            llm = import_vllm().LLM(**settings)
    finally:
        torch.set_num_threads = threads  # vLLM's CPU worker puts a function there that does nothing
    # vLLM freezes all objects, ours too: of a policy nobody has any more its cycles would never be found.
    gc.unfreeze()
    client = llm.llm_engine.engine_core
    client._finalizer.detach()
    weakref.finalize(policy, _stop, client.engine_core)
    return llm


def _stop(core: Any) -> None:
    """End an engine as vLLM does, but for torch's process groups, which the trainer and other engines still need."""
    core.model_executor.shutdown()
    core.scheduler.shutdown()


def _write_model(policy: Policy, folder: Path) -> None:
    """Configuration and processor; no weights."""
    config = policy.model.config
    config.architectures = config.architectures or [type(policy.model).__name__]
    config.save_pretrained(folder)
    policy.processor.save_pretrained(folder)


def _check_heads(policy: Policy) -> None:
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


def _check_cards(wanted: int, ranks: int, cards: int | None) -> None:
    """Raise ConfigError where `wanted` cards for an engine are not there; `cards` is None on a CPU."""
    if cards is None or wanted == 1:
        return
    if ranks > 1:
        raise ConfigError(
            f"sampling.vllm.tensor_parallel={wanted}: each of {ranks} ranks has an engine on its own card; set it to "
            "1, or start one process for all cards of the engine"
        )
    if wanted > cards:
        raise ConfigError(f"sampling.vllm.tensor_parallel={wanted}: this process sees {cards} cards; set it to {cards}")


@contextmanager
def _failing(doing: str, workers: Sequence[BaseProcess] = ()) -> Iterator[None]:
    """Whatever fails in there, or in a process of vLLM's, ends the run with words."""
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


LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What a launcher says to the trainer's processes; vLLM's own are none of them."""


@contextmanager
def _environment(folder: str, device: torch.device, apart: bool) -> Iterator[None]:
    """Variables while vLLM starts. Its own (VLLM_*) stay, because it reads them later; all others go back."""
    before = dict(os.environ)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the scheduler lives here, wherever the model does
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # ranks would be bound to the same cores
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (_healing(Path(folder)), before.get("PYTHONPATH"))))
    if apart:
        os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())
        for name in LAUNCHED:
            os.environ.pop(name, None)
        if device.type == "cuda" and distributed.world_size() > 1:
            os.environ["CUDA_VISIBLE_DEVICES"] = _own_card()
    try:
        yield
    finally:
        ours = {name: value for name, value in os.environ.items() if name.startswith("VLLM_")}
        os.environ.clear()
        os.environ.update({**before, **ours})


def _own_card() -> str:
    """The card that this rank trains on, as its process would name it."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    number = torch.cuda.current_device()
    return visible.split(",")[number].strip() if visible else str(number)


def _healing(folder: Path) -> str:
    """A folder whose `sitecustomize` heals torchvision in Python processes that vLLM starts, before they import it, and
    has vLLM's import say nothing."""
    place = folder / "startup"
    place.mkdir()
    (place / "sitecustomize.py").write_text(
        "import logging\n"
        "logging.getLogger('vllm').setLevel(logging.ERROR)\n"
        "from importlib.util import module_from_spec, spec_from_file_location\n"
        f"spec = spec_from_file_location('mm_spine_compat', {compat.__file__!r})\n"
        "compat = module_from_spec(spec)\n"
        "spec.loader.exec_module(compat)\n"
        "compat.heal_torchvision()\n"
    )
    return str(place)
