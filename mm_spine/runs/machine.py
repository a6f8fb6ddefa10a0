"""Facts about the machine: what environment.json holds, and the peak memory."""

from __future__ import annotations

import platform
import resource
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mm_spine import distributed
from mm_spine.compat import version_of
from mm_spine.config import plugins

PACKAGES = (
    *("torch", "transformers", "deepspeed", "accelerate", "qwen-vl-utils", "peft", "flash-attn", "numpy"),
    "mm-spine",
)


def environment(seed: int, kernels: Mapping[str, str | None]) -> dict[str, Any]:
    """Return the content of environment.json: versions, hardware, seed, commit and plugins, to repeat it.

    `kernels` says what computes attention (`Policy.kernels`).
    """
    return {
        "python": platform.python_version(),
        "packages": {name: version_of(name) for name in PACKAGES},
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "attention": dict(kernels),
        "processes": distributed.launched_processes(),
        "seed": seed,
        "commit": commit(),
        "plugins": plugins.digests(),
    }


def peak_memory() -> int:
    """Return the peak memory so far in bytes: of the GPU if there is one, otherwise of the process."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    # Linux gives kibibytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def commit() -> str | None:
    """Return the commit of the checkout that this code runs from, None outside a checkout."""
    here = Path(__file__).resolve().parent
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
