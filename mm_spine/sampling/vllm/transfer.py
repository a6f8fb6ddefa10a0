"""Weights on their way to vLLM's own processes: in buckets, through memory that both sides see.

On a card that is the card's own memory (CUDA IPC), on a CPU a file in shared memory.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mm_spine import distributed
from mm_spine.config import RunStopped

BUCKET = 2**30
"""The most bytes that are on their way at a time."""

LEAST = 2**24
"""Bytes: smaller buckets than this are not worth shared memory."""

SHARED_MEMORY = Path("/dev/shm")


class Piece(NamedTuple):
    """The bytes `at` to `at + size` of the bucket: those from `start` on of the tensor `name`."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    start: int
    at: int
    size: int


class Address(NamedTuple):
    """Where a bucket of `size` bytes lies: in a file, or on the card that `handle` is of."""

    size: int
    file: str = ""
    handle: tuple[Any, ...] = ()


def send(
    weights: Iterable[tuple[str, Tensor]], most: int, device: torch.device, call: Callable[..., None], card: int = 0
) -> None:
    """Hand `weights`, of at most `most` bytes together, to vLLM's workers, a bucket at a time.

    `call` runs a function of the module `worker`, by name, in each of them. `card` is the number that they know
    `device` by, if it is a card. Raises RunStopped if there is no room for a bucket.
    """
    size = min(most, BUCKET)
    with _on_card(size, device, card) if device.type == "cuda" else _in_file(size) as (bucket, address):
        call("begin_weights", address)
        for pieces in filled(weights, bucket):
            if bucket.is_cuda:
                torch.cuda.synchronize(device)
            call("load_bucket", pieces)
        call("finish_weights")


def filled(weights: Iterable[tuple[str, Tensor]], bucket: Tensor) -> Iterator[list[Piece]]:
    """Copy `weights` into `bucket` (bytes) one after the other; yield what it holds each time it is full.

    A tensor may lie in several buckets.
    """
    pieces: list[Piece] = []
    at = 0
    for name, tensor in weights:
        flat = tensor.contiguous().reshape(-1).view(torch.uint8)
        dtype = str(tensor.dtype).removeprefix("torch.")
        start = 0
        while start < len(flat):
            if at == len(bucket):
                yield pieces
                pieces, at = [], 0
            size = min(len(bucket) - at, len(flat) - start)
            bucket[at : at + size].copy_(flat[start : start + size])
            pieces.append(Piece(name, tuple(tensor.shape), dtype, start, at, size))
            start, at = start + size, at + size
    if pieces:
        yield pieces


class Incoming:
    """The worker's side: tensors on `device`, put together from the pieces in `bucket` (bytes)."""

    def __init__(self, bucket: Tensor, device: torch.device) -> None:
        self.bucket, self.device = bucket, device
        self.begun: dict[str, Tensor] = {}

    def weights(self, pieces: Iterable[Piece]) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors that `pieces` make whole. They share no memory with the bucket."""
        for name, shape, dtype, start, at, size in pieces:
            if name not in self.begun:
                self.begun[name] = torch.empty(shape, dtype=getattr(torch, dtype), device=self.device)
            flat = self.begun[name].reshape(-1).view(torch.uint8)
            flat[start : start + size].copy_(self.bucket[at : at + size])
            if start + size == len(flat):
                yield name, self.begun.pop(name)


def room(size: int, engines: int) -> tuple[Path, int]:
    """Return a folder, shared memory if possible, and a bucket of at most `size` bytes that fits there `engines` times.

    At least half of what is free stays free. Raises RunStopped if there is no room.
    """
    folders = [SHARED_MEMORY, Path(tempfile.gettempdir())]
    for folder in folders:
        # A container has 64 MB of shared memory unless it asks for more.
        share = shutil.disk_usage(folder).free // (2 * engines) if folder.is_dir() else 0
        if share >= min(size, LEAST):
            return folder, min(size, share)
    raise RunStopped(
        f"the weights have no room on their way to vLLM: {' and '.join(map(str, folders))} have less than "
        f"{2 * engines * min(size, LEAST):,} bytes free, for {engines} engines on this host; free some, or name "
        "another folder in TMPDIR"
    )


def open_bucket(address: Address) -> Tensor:
    """Return the bucket at `address` in another process than the one that made it."""
    if address.file:
        return torch.from_file(address.file, shared=True, size=address.size, dtype=torch.uint8)
    from torch.multiprocessing.reductions import rebuild_cuda_tensor

    bucket: Tensor = rebuild_cuda_tensor(*address.handle)
    return bucket


@contextmanager
def _in_file(size: int) -> Iterator[tuple[Tensor, Address]]:
    folder, size = room(size, distributed.local_processes())
    with tempfile.NamedTemporaryFile(prefix="mm-spine-weights-", dir=folder) as file:
        # Reserved now: a write to shared memory that is full would end the process.
        os.posix_fallocate(file.fileno(), 0, size)
        yield torch.from_file(file.name, shared=True, size=size, dtype=torch.uint8), Address(size, file.name)


@contextmanager
def _on_card(size: int, device: torch.device, card: int) -> Iterator[tuple[Tensor, Address]]:
    from torch.multiprocessing.reductions import reduce_tensor

    bucket = torch.empty(size, dtype=torch.uint8, device=device)
    handle = list(reduce_tensor(bucket)[1])
    # torch's position of the card's number; vLLM's own transfer changes the same one.
    handle[6] = card
    yield bucket, Address(size, handle=tuple(handle))
    del bucket
    torch.cuda.ipc_collect()
