"""How many packed tokens a micro-batch may hold: probed on the card, and halved when its memory runs out."""

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

DEFAULT_TOKENS = 8192
"""Packed tokens of a micro-batch where nothing can be probed: on a CPU, and before the first update."""

USABLE_SHARE = 0.85
"""Share of the memory free before the probe that micro-batches may take. The rest is for fragments, and for responses
that grow."""


class MemoryReading(NamedTuple):
    """What one micro-batch took, forward and backward: its packed tokens, and its peak of bytes above those before."""

    tokens: int
    bytes: int


class MemoryShortage(RunStopped):
    """A micro-batch or an optimiser step that does not fit and cannot be made smaller, or not on all processes."""


def tokens_that_fit(readings: Sequence[MemoryReading], available: int, share: float = USABLE_SHARE) -> int:
    """Return the largest token count whose bytes stay within `share` of the `available` ones; at least 1.

    Bytes are taken as fixed + per_token x tokens, the line through the smallest and the largest reading. With one
    reading, or when the larger one took no more, the line goes through the origin, and the count is on the safe side.
    """
    small, large = min(readings), max(readings)
    fixed, per_token = 0.0, large.bytes / large.tokens
    if large.tokens > small.tokens and large.bytes > small.bytes:
        per_token = (large.bytes - small.bytes) / (large.tokens - small.tokens)
        fixed = max(0.0, small.bytes - per_token * small.tokens)
    return max(1, int((share * available - fixed) / max(per_token, 1e-9)))


def probe(measure: Callable[[int], int], tokens: int, available: int) -> int:
    """Return the token budget, from one and two copies of the largest group, which has `tokens` packed tokens.

    `measure(copies)` returns the peak of bytes above those in use before.
    """
    readings = [MemoryReading(tokens, measure(1))]
    # Two copies take at most twice the bytes of one. Where that fits, the second probe cannot run out of memory.
    if 2 * readings[0].bytes <= USABLE_SHARE * available:
        readings.append(MemoryReading(2 * tokens, measure(2)))
    return tokens_that_fit(readings, available)


def can_probe(device: torch.device) -> bool:
    """Whether the device reports its peak memory."""
    return device.type == "cuda"


def available_bytes(device: torch.device) -> int:
    """Return the bytes of the card that this process could still allocate, its unused reserve included."""
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """Return the peak of bytes on the card during `work`, above those in use before."""
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    work()
    return int(torch.cuda.max_memory_allocated(device) - before)


class TokenBudget:
    """The token budget in use: the configured number, or with `auto` what a probe finds (DEFAULT_TOKENS on a CPU).

    `tokens` is None before the probe. `running` holds the leaf groups of the micro-batch in progress, so that a
    shortage of memory can name what did not fit.
    """

    def __init__(self, setting: int | Literal["auto"], policy: Policy, engine: Engine) -> None:
        self._policy, self._engine = policy, engine
        auto = None if can_probe(policy.device) else DEFAULT_TOKENS
        self.tokens: int | None = auto if setting == "auto" else setting
        self.running: Sequence[LeafGroup] = ()

    @property
    def at_once(self) -> int:
        """Packed tokens that a micro-batch may hold now."""
        return DEFAULT_TOKENS if self.tokens is None else self.tokens

    def find(self, groups: Sequence[LeafGroup], backward: Callable[[Sequence[LeafGroup]], object]) -> None:
        """Probe with the largest of `groups`, unless the budget is known. The probe's gradients are discarded.

        All ranks probe the same group, and agree on the highest peak and the least memory. A group that does not fit
        is divided until a part of it does.
        """
        if self.tokens is not None:
            return
        lengths = distributed.gather([packed_length(self._policy, group) for group in distributed.mine(groups)])
        longest, device = max(lengths), self._policy.device
        largest = groups[lengths.index(longest)]
        spare = min(distributed.gather([available_bytes(device) - self._engine.bytes_to_come()]))

        def probed() -> int:
            # Running out of memory has set `tokens` to the half of what did not fit.
            (part, *_), *_ = micro_batches(self._policy, [largest], self.tokens or longest)

            def measure(copies: int) -> int:
                self.running = [part]
                taken = peak_bytes(partial(backward, [part] * copies), device)
                self._engine.discard()
                return max(distributed.gather([taken]))

            return probe(measure, packed_length(self._policy, part), spare)

        self.tokens = self.within(probed)
        log.info("engine.token_budget=auto: %d packed tokens; the largest group has %d", self.tokens, longest)

    def within(self, work: Callable[[], Result]) -> Result:
        """Return the result of `work`. When memory runs out, start it again from zero gradients with half the budget.

        Raises MemoryShortage where no smaller budget would help, and on several processes.
        """
        while True:
            try:
                return work()
            except torch.OutOfMemoryError as error:
                why = str(error).split(". ")[0]
            # Outside the handler: the exception is gone, and with its traceback the activations.
            self._make_room(why)

    def _make_room(self, why: str) -> None:
        half = self._halved()
        if half is None:
            raise MemoryShortage(
                f"{self._running_name()} does not fit into memory ({why}): lower sampling.max_new_tokens or "
                "model.max_pixels, or set engine.checkpoint_activations"
            )
        # Ranks that did not fail are inside a collective: this one cannot start the step again without them.
        if distributed.world_size() > 1:
            raise MemoryShortage(f"rank {distributed.rank()}: {why}; set engine.token_budget={half} and start again")
        log.warning("%s: the step starts anew with engine.token_budget=%d, it was %d", why, half, self.at_once)
        self.tokens, self.running = half, ()
        self._engine.discard()
        if self._policy.device.type == "cuda":
            torch.cuda.empty_cache()

    def _halved(self) -> int | None:
        """Halve the budget until it splits the micro-batch that did not fit. None if that is a single response."""
        # The probe's is larger than a budget that is not known yet.
        half = max(self.at_once, *(packed_length(self._policy, group) for group in self.running), 0) // 2
        if sum(len(group.leaves) for group in self.running) == 1 or half < 1:
            return None
        while self.running and len(micro_batches(self._policy, self.running, half)) == 1:
            half //= 2
        return half

    def _running_name(self) -> str:
        if not self.running:
            return "a single response"
        tokens = packed_length(self._policy, self.running[0])
        return f"question {self.running[0].question.id!r} with {tokens} packed tokens"
