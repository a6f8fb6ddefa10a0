"""Measure time and peak memory of steps side by side."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

Step = Callable[[], object]
"""One optimiser step; what it returns is dropped."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""glibc's numbers for mallopt: bytes that may stay free at the heap's end; bytes above which a block is mapped."""


class Took(NamedTuple):
    """Seconds of one call by the clock, and of processor time over all threads, which other processes hardly change."""

    wall: float
    cpu: float


def interleaved(steps: Mapping[str, Step], device: torch.device, repeats: int) -> dict[str, list[Took]]:
    """Time `repeats` calls of each step, already warm; the steps take turns, so that noise affects all alike."""
    taken: dict[str, list[Took]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            taken[name].append(timed(step, device))
    return taken


def timed(step: Step, device: torch.device) -> Took:
    """Time one call until the device has finished; garbage collection is not included."""
    gc.collect()
    _wait(device)
    wall, cpu = time.perf_counter(), time.process_time()
    step()
    _wait(device)
    return Took(time.perf_counter() - wall, time.process_time() - cpu)


def together(one: Sequence[Took], other: Sequence[Took]) -> list[Took]:
    """Turn by turn, one call after the other."""
    return [Took(a.wall + b.wall, a.cpu + b.cpu) for a, b in zip(one, other, strict=True)]


def middle(taken: Sequence[Took]) -> Took:
    """Return the median of each kind of seconds."""
    return Took(median(each.wall for each in taken), median(each.cpu for each in taken))


def ratio(slow: Sequence[Took], fast: Sequence[Took], kind: str = "wall") -> float:
    """Return the median over turns of slow/fast; a disturbance that lasts for a turn cancels."""
    return median(getattr(a, kind) / getattr(b, kind) for a, b in zip(slow, fast, strict=True))


def peak_memory(step: Step, device: torch.device) -> int:
    """Return the bytes that one call needs at its peak above what was held before: weights, optimiser state, caches.

    CUDA: the allocator's count. CPU: the high-water mark of the process's resident memory (Linux), with every block
    above 64 KiB mapped by itself, so that memory freed by earlier work cannot be used unseen.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device)) - before
    libc: Any = ctypes.CDLL(None)
    libc.mallopt(_MMAP_THRESHOLD, 64 * 1024)
    libc.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    step()
    peak = _resident("VmHWM") - before
    # Where glibc's own adjustment ends in a process with large tensors: mapping costs page faults in timed calls.
    libc.mallopt(_MMAP_THRESHOLD, 32 * 2**20)
    libc.mallopt(_TRIM_THRESHOLD, 64 * 2**20)
    return peak


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
