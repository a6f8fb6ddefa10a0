"""One update: the gradient of the whole step by micro-batches, an optimiser step, and as many epochs as asked for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import pad

from mm_spine import distributed
from mm_spine.config import RunConfig
from mm_spine.policy.distribution import Distribution
from mm_spine.policy.model import Policy
from mm_spine.policy.reference import Reference
from mm_spine.training import step_report
from mm_spine.training.batch import LeafGroup, collate, micro_batches
from mm_spine.training.budget import TokenBudget
from mm_spine.training.engine import Engine
from mm_spine.training.loss import DIVERGENCES, Denominators, losses
from mm_spine.training.parity import Gap, check_parity
from mm_spine.training.step_report import Sums
from mm_spine.types import StepReport


class OldLogProbs:
    """The log-probs of the policy before the first optimiser step on a batch.

    The first epoch's own forward records them, where the importance ratio is 1, so that no extra pass is needed.
    The epochs after it read them back.
    """

    def __init__(self) -> None:
        self.recording = True
        self._known: dict[tuple[str, int], Tensor] = {}

    def of(self, groups: Sequence[LeafGroup], logp_NT: Tensor) -> Tensor:
        """Return the old log-probs (N, T) of the leaves of `groups`, whose detached log-probs of now are `logp_NT`."""
        keys = [leaf.key for group in groups for leaf in group.leaves]
        if self.recording:
            self._known.update(zip(keys, logp_NT, strict=True))
            return logp_NT
        # Since the first epoch a leaf may have moved to a micro-batch of another padded width.
        width = logp_NT.shape[1]
        known = [self._known[key][:width] for key in keys]
        return torch.stack([pad(known_T, (0, width - len(known_T))) for known_T in known])


class Updater:
    """Trains a policy on credited groups. Owns the optimiser, the token budget and the KL anchor."""

    def __init__(self, policy: Policy, config: RunConfig) -> None:
        self.policy, self.config = policy, config
        self.distribution = Distribution(config.sampling.temperature, policy.banned)
        self.divergence = DIVERGENCES[config.method.kl]
        self.reference = Reference(policy) if self.divergence else None
        self.engine = Engine(policy, config.optim, config.engine)
        self.budget = TokenBudget(config.engine.token_budget, policy, self.engine)

    def update(
        self, report: StepReport, groups: Sequence[LeafGroup], over: Denominators, gap: Gap | None
    ) -> StepReport:
        """Take the optimiser steps of one batch, all ranks' `groups`, and fill in what they measured.

        `gap` is the parity gap where scoring has measured it. Else the first epoch's forward measures it, before any
        weight moves. Raises ParityError and MemoryShortage.
        """
        dtype, limit = self.policy.text.head.weight.dtype, self.config.engine.parity_limit
        if gap is not None:
            check_parity(report, gap, dtype, limit)
        if not groups:
            return report
        self.budget.find(groups, partial(self._backward, over=over, old=OldLogProbs(), last=True))
        old = OldLogProbs()
        for epoch in range(self.config.optim.epochs):
            old.recording = epoch == 0
            sums = self.budget.within(lambda: self._accumulate(groups, over, old))
            trained = step_report.add_up(report, distributed.gather(sums))
            if epoch == 0 and gap is None:
                check_parity(report, trained, dtype, limit)
            report.grad_norm, report.update_norm = self.engine.step(report.lr)
        return report

    def _accumulate(self, groups: Sequence[LeafGroup], over: Denominators, old: OldLogProbs) -> list[Sums]:
        """Accumulate the gradient over all groups. Returns the sums of this rank's micro-batches."""
        micros = micro_batches(self.policy, distributed.mine(groups), self.budget.at_once)
        rounds = max(distributed.gather([len(micros)]))
        sums = []
        for i in range(rounds):
            # Every rank must run the same number of micro-batches, or ZeRO-3 hangs. One too many counts for nothing.
            spare = i >= len(micros)
            self.budget.running = [groups[0]] if spare else micros[i]
            scale = 0.0 if spare else 1.0
            sums.append(self._backward(self.budget.running, over, old, scale, last=i == rounds - 1))
        self.budget.running = ()
        return sums

    def _backward(
        self, groups: Sequence[LeafGroup], over: Denominators, old: OldLogProbs, scale: float = 1.0, last: bool = False
    ) -> Sums:
        """Run one micro-batch forward and backward; `last` also reduces the gradient over ranks."""
        micro = collate(self.policy, groups)
        anchor = None
        if self.reference is not None and self.divergence is not None:
            anchor = self.reference.anchor(micro.packed, self.divergence)
        trained = self.engine.forward(micro.packed, self.distribution, anchor)
        old_NT = old.of(groups, trained.stats.logp_NT.detach())
        parts = losses(trained, micro, old_NT, self.config.method, over)
        self.engine.backward(scale * (parts.policy + parts.band + parts.kl), last)
        sums = step_report.sums_of(micro, trained, parts, old_NT, self.config.method)
        return Sums(*(scale * total for total in sums))
