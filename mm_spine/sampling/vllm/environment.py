"""The environment variables that vLLM's processes start with."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from mm_spine import compat, distributed
from mm_spine.sampling.vllm.layout import own_cards

LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What a launcher sets for the trainer's processes. vLLM's own processes must not take themselves for one of them."""


@contextmanager
def starting_environment(folder: Path, device: torch.device, own_process: bool, cards: int = 1) -> Iterator[None]:
    """Set the variables that vLLM starts with; `folder` takes a startup script for its processes.

    Beside other ranks, an engine on cards sees its own `cards` only.

    Afterwards everything is as before, except variables named VLLM_*, which vLLM reads later.
    """
    before = dict(os.environ)
    # The scheduler runs in this process, wherever the model runs.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    # vLLM would bind all ranks to the same cores.
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    startup = _write_startup_script(folder)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(startup), before.get("PYTHONPATH"))))
    if own_process:
        os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())
        for name in LAUNCHED:
            os.environ.pop(name, None)
        if device.type == "cuda" and distributed.world_size() > 1:
            os.environ["CUDA_VISIBLE_DEVICES"] = own_cards(cards)
    try:
        yield
    finally:
        kept = {name: value for name, value in os.environ.items() if name.startswith("VLLM_")}
        os.environ.clear()
        os.environ.update({**before, **kept})


def _write_startup_script(folder: Path) -> Path:
    """Return a folder with a `sitecustomize` that Python runs first in every process that vLLM starts."""
    # It repairs torchvision before vLLM imports it, and silences the notices of vLLM's import. It loads `compat` by
    # its path, because `import mm_spine` would import torch first.
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
    return place
