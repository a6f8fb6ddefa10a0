"""How many packed tokens a micro-batch may hold: found by a probe of the card, halved when its memory runs out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple, TypeVar

import torch

from mm_spine import distributed
from mm_spine.config import RunStopped
from mm_spine.policy.model import Policy
from mm_spine.training.batch import LeafGroup, micro_batches, packed_length
from mm_spine.training.engine import Engine

log = logging.getLogger(__name__)
Result = TypeVar("Result")

DEFAULT = 8192
"""Packed tokens where nothing can be probed: on a CPU, and before the first update."""

SHARE = 0.85
"""Of the memory that is free before the probe; the rest is for fragments, and for responses that grow."""


LOWER = "sampling.max_new_tokens, sampling.train_rollouts or model.max_pixels, or set engine.checkpoint_activations"


class MemoryReading(NamedTuple):
    """One micro-batch, forward and backward: its packed tokens, and its peak above what stood before, in bytes."""

    tokens: int
    bytes: int


class MemoryShortage(RunStopped):
    """A micro-batch that cannot be made small enough, or on several processes one that is too large."""


def tokens_that_fit(readings: Sequence[MemoryReading], available: int, share: float = SHARE) -> int:
    """The largest token count whose bytes stay within `share` of the `available` ones; at least one.

    Bytes are fixed + per_token x tokens, the line through the smallest and the largest reading. With one reading, or
    when the larger took no more, the line goes through the origin: that asks for less than would fit.
    """
    small, large = min(readings), max(readings)
    fixed, per_token = 0.0, large.bytes / large.tokens
    if large.tokens > small.tokens and large.bytes > small.bytes:
        per_token = (large.bytes - small.bytes) / (large.tokens - small.tokens)
        fixed = max(0.0, small.bytes - per_token * small.tokens)
    return max(1, int((share * available - fixed) / max(per_token, 1e-9)))


def probe(measure: Callable[[int], int], tokens: int, available: int) -> int:
    """The token budget, from one and two copies of the largest group of `tokens` packed tokens.

    `measure(copies)` -> peak bytes above what stood before. Two copies take at most twice the bytes of one and are
    tried only where that fits, so that a probe after the first cannot run out of memory.
    """
    readings = [MemoryReading(tokens, measure(1))]
    if 2 * readings[0].bytes <= SHARE * available:
        readings.append(MemoryReading(2 * tokens, measure(2)))
    return tokens_that_fit(readings, available)


def can_probe(device: torch.device) -> bool:
    """Whether a device says how much of its memory was in use at most."""
    return device.type == "cuda"


def available_bytes(device: torch.device) -> int:
    """Bytes that this process could still take of its card, with what it holds in reserve."""
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """The most bytes that `work` held at once on the card, above what stood before."""
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    work()
    return int(torch.cuda.max_memory_allocated(device) - before)


class TokenBudget:
    """The token budget in use: the one set, or what a probe found (`auto`, on CUDA; DEFAULT elsewhere).

    `tokens` is None before the probe. `running` are the rows of the micro-batch at work, so that a shortage of memory
    can say what did not fit.
    """

    def __init__(self, setting: int | Literal["auto"], policy: Policy, engine: Engine) -> None:
        self._policy, self._engine = policy, engine
        auto = None if can_probe(policy.device) else DEFAULT
        self.tokens: int | None = auto if setting == "auto" else setting
        self.running: Sequence[LeafGroup] = ()

    @property
    def at_once(self) -> int:
        """Packed tokens of a micro-batch for now."""
        return DEFAULT if self.tokens is None else self.tokens

    def find(self, rows: Sequence[LeafGroup], backward: Callable[[Sequence[LeafGroup]], object]) -> None:
        """Probe with the largest of all ranks' `rows`, unless a budget is known; the gradients are thrown away.

        All ranks probe the same group and agree on the highest peak and the least memory.
        """
        if self.tokens is not None:
            return
        lengths = distributed.gather([packed_length(self._policy, row) for row in distributed.mine(rows)])
        tokens, device = max(lengths), self._policy.device
        largest = rows[lengths.index(tokens)]
        spare = min(distributed.gather([available_bytes(device) - self._engine.bytes_to_come()]))

        def measure(copies: int) -> int:
            self.running = [largest]
            taken = peak_bytes(partial(backward, [largest] * copies), device)
            self._engine.discard()
            return max(distributed.gather([taken]))

        self.tokens = self.within(lambda: probe(measure, tokens, spare))
        log.info("engine.token_budget=auto: %d packed tokens; the largest group has %d", self.tokens, tokens)

    def within(self, work: Callable[[], Result]) -> Result:
        """The result of `work`, started anew from zero gradients with a smaller budget when memory runs out.

        Raises MemoryShortage where no smaller budget would help, and on several processes.
        """
        while True:
            try:
                return work()
            except torch.OutOfMemoryError as error:
                why = str(error).split(". ")[0]
            # The exception is gone here, and with its traceback the activations.
            self._make_room(why)

    def _make_room(self, why: str) -> None:
        half = self._halved()
        if half is None:
            raise MemoryShortage(f"{self._named()} does not fit into memory ({why}): lower {LOWER}")
        if distributed.world_size() > 1:
            raise MemoryShortage(f"rank {distributed.rank()}: {why}; set engine.token_budget={half} and start again")
        log.warning("%s: the step starts anew with engine.token_budget=%d, it was %d", why, half, self.at_once)
        self.tokens, self.running = half, ()
        self._engine.discard()
        if self._policy.device.type == "cuda":
            torch.cuda.empty_cache()

    def _halved(self) -> int | None:
        """Half, as often as it takes to split the micro-batch that did not fit; None if it is a single group."""
        half = self.at_once // 2
        if len(self.running) == 1 or half < 1:
            return None
        while self.running and len(micro_batches(self._policy, self.running, half)) == 1:
            half //= 2
        return half

    def _named(self) -> str:
        if not self.running:
            return "a single group"
        tokens = packed_length(self._policy, self.running[0])
        return f"question {self.running[0].question.id!r} with {tokens} packed tokens"
