"""Weights on their way to vLLM's processes: what arrives, in which pieces, and where there is room for them."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_policy
from torch import Tensor

from mm_spine.config import LoraConfig, ModelConfig, RunStopped
from mm_spine.sampling.vllm import transfer
from mm_spine.sampling.vllm.transfer import Address, Incoming, Piece, open_bucket, room, send
from mm_spine.sampling.vllm.weights import most_bytes, replaces_all, served_weights

CPU = torch.device("cpu")


def some_weights() -> list[tuple[str, Tensor]]:
    """Of several types and sizes, one of them not contiguous."""
    noise = torch.Generator().manual_seed(0)
    return [
        ("a", torch.randn(7, 5, generator=noise)),
        ("b", torch.randn(33, generator=noise).bfloat16()),
        ("turned", torch.randn(4, 6, generator=noise).T),
        ("c", torch.randn(1, generator=noise).half()),
        ("large", torch.randn(100, 9, generator=noise).bfloat16()),
    ]


class Worker:
    """A process of vLLM's that takes the calls; `most` is the most bytes that a bucket held."""

    def __init__(self, opened: Callable[[Address], Tensor] = open_bucket) -> None:
        self.opened, self.heard, self.found, self.most = opened, list[str](), dict[str, Tensor](), 0

    def call(self, name: str, *arguments: Any) -> None:
        self.heard.append(name)
        if name == "begin_weights":
            self.incoming = Incoming(self.opened(arguments[0]), CPU)
        if name == "load_bucket":
            pieces: list[Piece] = arguments[0]
            self.most = max(self.most, sum(piece.size for piece in pieces))
            self.found |= dict(self.incoming.weights(pieces))


@pytest.mark.parametrize("size", [1, 3, 64, 500, 10_000])
def test_what_arrives_is_what_was_sent_however_small_the_bucket(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor may lie in several buckets, and cut anywhere."""
    monkeypatch.setattr(transfer, "BUCKET", size)
    worker, sent = Worker(), some_weights()
    total = sum(tensor.nbytes for _, tensor in sent)
    send(sent, total, CPU, worker.call)
    assert list(worker.found) == [name for name, _ in sent]
    for name, tensor in sent:
        assert worker.found[name].dtype == tensor.dtype and worker.found[name].equal(tensor)
    assert worker.most <= size and not worker.incoming.begun
    assert worker.heard == ["begin_weights", *["load_bucket"] * -(-total // size), "finish_weights"]


def test_what_arrived_does_not_change_when_the_bucket_is_filled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM keeps what it is given until a whole layer is there."""
    monkeypatch.setattr(transfer, "BUCKET", 140)
    worker, sent = Worker(), [(str(i), torch.full((35,), float(i))) for i in range(4)]
    send(sent, 560, CPU, worker.call)
    assert [float(worker.found[str(i)].unique()) for i in range(4)] == [0, 1, 2, 3]


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "SHARED_MEMORY", tmp_path)
    worker = Worker()
    send(some_weights(), 10_000, CPU, worker.call)
    assert worker.found and not list(tmp_path.iterdir())


def test_on_a_card_the_bucket_is_the_cards_own_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """With torch's sharing replaced: no card is needed. The worker knows the card by another number."""
    from torch.multiprocessing import reductions

    shared: list[Tensor] = []

    def reduce_tensor(bucket: Tensor) -> tuple[Any, tuple[Any, ...]]:
        shared.append(bucket)
        return None, (*"012345", 3, "7")

    class Card:
        type = "cuda"

    usual = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: usual(*a, **{**k, "device": "cpu"}))
    monkeypatch.setattr(reductions, "reduce_tensor", reduce_tensor)
    monkeypatch.setattr(torch.cuda, "ipc_collect", lambda: None)
    monkeypatch.setattr(transfer, "BUCKET", 100)
    addresses: list[Address] = []

    def opened(address: Address) -> Tensor:
        addresses.append(address)
        return shared[0]

    worker, sent = Worker(opened), some_weights()
    send(sent, 10_000, Card(), worker.call, card=0)  # type: ignore[arg-type]
    assert all(worker.found[name].equal(tensor) for name, tensor in sent)
    assert addresses == [Address(100, "", (*"012345", 0, "7"))]


Usage = namedtuple("Usage", "free")


def test_the_room_is_shared_by_all_engines_of_a_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A container's shared memory is 64 MB unless it asks for more: the bucket is smaller there, or in a file."""
    free = {str(tmp_path): 64 * 2**20, transfer.tempfile.gettempdir(): 2**40}
    monkeypatch.setattr(transfer, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda folder: Usage(free[str(folder)]))
    elsewhere = Path(transfer.tempfile.gettempdir())
    assert room(1000, 1) == (tmp_path, 1000)
    assert room(2**30, 1) == (tmp_path, 32 * 2**20)
    assert room(2**30, 2) == (tmp_path, 16 * 2**20)
    assert room(2**30, 3) == (elsewhere, 2**30)
    free[str(elsewhere)] = 10**6
    with pytest.raises(RunStopped, match="have less than 134,217,728 bytes free, for 4 engines.*TMPDIR"):
        room(2**30, 4)


@pytest.mark.parametrize(
    ("config", "every"),
    [(ModelConfig(), True), (ModelConfig(train="lora", lora=LoraConfig(rank=2)), False)],
)
def test_full_training_replaces_all_that_vllm_holds(config: ModelConfig, every: bool) -> None:
    policy = tiny_policy(1, config=config)
    assert replaces_all(policy) == every
    whole, trained = (dict(served_weights(policy, trained_only=only)) for only in (False, True))
    assert (set(whole) == set(trained)) == every
    assert sum(tensor.nbytes for tensor in whole.values()) <= most_bytes(policy)
