"""What the check runs on: hardware, versions, attention kernels, and the rate of large matrix products."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata

import torch
from flop_counts import Matmul
from timing import timed

from gpu.notes import Failed, Setting
from mm_spine.policy.kernels import backend_name
from mm_spine.policy.model import DTYPES

PACKAGES = (
    *("torch", "torchvision", "triton", "transformers", "peft", "accelerate", "deepspeed", "numpy", "pydantic"),
    *("qwen-vl-utils", "pyarrow", "matplotlib", "trl", "datasets", "flash-attn", "vllm"),
)
PRODUCTS = 5


def measure(setting: Setting) -> None:
    """Write down the machine. Raises Failed without a GPU, unless this is a rehearsal."""
    notes = setting.notes
    for name, value in {**hardware(), **versions()}.items():
        notes.row("Hardware and versions", what=name, found=value)
    if setting.device.type != "cuda" and not setting.rehearsal:
        notes.put("no_device", True)
        raise Failed("torch finds no GPU here; --rehearse runs tiny shapes on the CPU")
    for name, dtype in DTYPES.items():
        notes.row(
            "Matrix products and kernels",
            dtype=name,
            **{
                "TFLOP/s of a large square product": matmul_rate(setting.device, dtype) / 1e12,
                "attention over token trees": backend_name(setting.device, dtype, HEAD_WIDTH),
            },
        )


HEAD_WIDTH = 128
"""Width of a head of Qwen2.5-VL-3B: kernels are chosen by it."""


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the floating-point operations per second of large products, after one that is not counted."""
    product = Matmul(device, dtype)
    product()
    return PRODUCTS * product.flops / timed(lambda: [product() for _ in range(PRODUCTS)], device).wall


def hardware() -> dict[str, str]:
    """Return what to repeat the measurement on."""
    found = {"processor": f"{os.cpu_count()} x {platform.machine()}", "python": platform.python_version()}
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        found |= {
            "GPU": gpu.name,
            "GPU memory": f"{gpu.total_memory / 2**30:.1f} GiB",
            "compute capability": f"{gpu.major}.{gpu.minor}, {gpu.multi_processor_count} multiprocessors",
            "CUDA of torch": str(torch.version.cuda),
            "driver": driver(),
        }
    return found


def driver() -> str:
    """Return the version of NVIDIA's driver, "unknown" where nvidia-smi does not say."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown"


def versions() -> dict[str, str]:
    """Return package -> version, "-" where it is not there."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "-"
    return found
