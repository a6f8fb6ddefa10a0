"""The few collectives the loop needs; with one process each is the identity."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch.distributed as dist

from mm_spine.compat import environment

Item = TypeVar("Item")


def rank() -> int:
    """This process's number, 0 when alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def launch_variables() -> Iterator[None]:
    """The variables a launcher would set, while a plain `python` start initialises; DeepSpeed looks for MPI otherwise.

    They go again afterwards, or a process started from this one would take itself for the same rank; LOCAL_RANK
    stays, because ZeRO-3 reads it in every forward.
    """
    if "RANK" in os.environ:
        yield
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    alone = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ["LOCAL_RANK"] = "0"
    with environment(alone):
        yield


def mine(items: Sequence[Item]) -> list[Item]:
    """This rank's share, every world_size-th item."""
    return list(items[rank() :: world_size()])


def gather(share: Sequence[Item]) -> list[Item]:
    """All ranks' shares, put back into the order `mine` took them from, on every rank."""
    if world_size() == 1:
        return list(share)
    shares: list[Any] = [None] * world_size()
    dist.all_gather_object(shares, list(share))
    longest = max(len(s) for s in shares)
    return [s[i] for i in range(longest) for s in shares if i < len(s)]


def same_on_all(value: Item) -> Item:
    """Rank 0's value, on every rank."""
    holder = [value]
    if world_size() > 1:
        dist.broadcast_object_list(holder, src=0)
    return holder[0]


def barrier() -> None:
    """Wait for all ranks."""
    if world_size() > 1:
        dist.barrier()


def launched_processes() -> int:
    """How many processes the launcher started (torchrun or deepspeed), before any of them has initialised."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def initialise() -> None:
    """Join the other processes, if a launcher started several. Safe to call twice."""
    if launched_processes() > 1 and not dist.is_initialized():
        import deepspeed
        import torch

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        deepspeed.init_distributed()
