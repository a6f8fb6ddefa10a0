"""The collectives of the training loop. With one process each of them returns its input."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch.distributed as dist

from mm_spine.compat import environment

Item = TypeVar("Item")


def rank() -> int:
    """Return the rank of this process, 0 where there is only one."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def launch_variables() -> Iterator[None]:
    """Set the variables that a launcher sets, if there is none, while DeepSpeed initialises.

    Without them DeepSpeed looks for MPI. All but LOCAL_RANK are removed again.
    """
    if "RANK" in os.environ:
        yield
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # ZeRO-3 reads LOCAL_RANK in every forward, so it stays.
    os.environ["LOCAL_RANK"] = "0"
    # The others must go: a process started from this one would take itself for rank 0 of the same group.
    with environment({"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}):
        yield


def mine(items: Sequence[Item], together: int = 1) -> list[Item]:
    """Return the share of this rank: every `world_size`-th item, from its own rank on.

    Of every `together` ranks the first has a share, and the others have none.
    """
    place, behind = divmod(rank(), together)
    return [] if behind else list(items[place :: max(world_size() // together, 1)])


def gather(share: Sequence[Item]) -> list[Item]:
    """Return the shares of all ranks on every rank, in the order of the list that `mine` divided."""
    if world_size() == 1:
        return list(share)
    shares: list[Any] = [None] * world_size()
    dist.all_gather_object(shares, list(share))
    longest = max(len(s) for s in shares)
    return [s[i] for i in range(longest) for s in shares if i < len(s)]


def on_all_or_none(work: Callable[[], Item], stops: type[Exception]) -> Item:
    """Return the result of `work`, which calls no collective. If it raises `stops` on one rank, raise it on all ranks.

    A rank that stopped alone would leave the others waiting for it in their next collective. Where several ranks
    raise, all raise the error of the first.
    """
    if world_size() == 1:
        return work()
    result, raised = None, None
    try:
        result = work()
    except stops as error:
        raised = error
    found = [error for error in gather([raised]) if error is not None]
    if found:
        raise found[0] from raised
    return cast(Item, result)


def same_on_all(value: Item) -> Item:
    """Return the value of rank 0 on every rank."""
    holder = [value]
    if world_size() > 1:
        dist.broadcast_object_list(holder, src=0)
    return holder[0]


def barrier() -> None:
    """Wait for all ranks."""
    if world_size() > 1:
        dist.barrier()


def launched_processes() -> int:
    """Return how many processes the launcher (torchrun or deepspeed) has started, initialised or not."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_processes() -> int:
    """Return how many of the launched processes run on this host."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", launched_processes()))


def initialise() -> None:
    """Join the other processes, if a launcher has started several. Calling it again does nothing."""
    if launched_processes() > 1 and not dist.is_initialized():
        import deepspeed
        import torch

        # DeepSpeed would otherwise compile its shared-memory operator when the group is initialised on CPUs.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        deepspeed.init_distributed()
