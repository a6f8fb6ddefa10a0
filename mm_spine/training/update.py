"""One update: the gradient of the whole step by micro-batches, an optimiser step, and as many epochs as asked for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import pad

from mm_spine import distributed
from mm_spine.config import RunConfig, RunStopped
from mm_spine.policy.distribution import Distribution
from mm_spine.policy.errors import NotFinite
from mm_spine.policy.finite import assert_finite
from mm_spine.policy.model import Policy
from mm_spine.policy.reference import Reference
from mm_spine.policy.scoring import score_responses
from mm_spine.training import step_report
from mm_spine.training.batch import LeafGroup, collate, micro_batches
from mm_spine.training.budget import MemoryShortage, TokenBudget
from mm_spine.training.engine import Engine, can_offload
from mm_spine.training.loss import DIVERGENCES, USUAL, Denominators, Rules, losses, on_the_bound
from mm_spine.training.parity import Gap, ParityWatch
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

    def __init__(self, policy: Policy, config: RunConfig, rules: Rules = USUAL) -> None:
        self.policy, self.config, self.rules = policy, config, rules
        self._statistics = [term.statistic for term in rules.terms if term.statistic is not None]
        self.distribution = Distribution(config.sampling.temperature, policy.banned)
        self.divergence = DIVERGENCES[config.method.kl]
        self.engine = Engine(policy, config.optim, config.engine)
        # After the engine, which partitions adapters.
        anchored = self.divergence is not None or any(term.anchored for term in rules.terms)
        self.reference = Reference(policy) if anchored else None
        self._offloads = config.offloads and can_offload(policy.device)
        self._to_host()
        self.budget = TokenBudget(config.engine.token_budget, policy, self.engine)
        dtype = policy.text.head.weight.dtype
        self.parity = ParityWatch(dtype, config.engine.parity_limit)
        self.on_bound = on_the_bound(dtype, len(policy.text.language_model.layers))
        self._last: LeafGroup | None = None
        self._not_finite: str | None = None

    def update(self, report: StepReport, groups: Sequence[LeafGroup], over: Denominators, gap: Gap | None) -> None:
        """Take the optimiser steps of one batch, all ranks' `groups`, and fill in what they measured.

        `gap` is the parity gap where scoring has measured it. Else the first epoch's forward measures it, before any
        weight moves. Raises ParityError, NotFinite and MemoryShortage: the last one alone also from the optimiser's
        step, when the weights are not to be used any more.
        """
        if gap is not None:
            self.parity.check(report, gap, "all sampled")
        if not groups:
            return
        self._last = groups[0]
        with _named_shortage(f"step {report.step}: the optimiser's state does not fit into memory beside the weights"):
            self._to_card()
        self.budget.find(groups, partial(self._backward, over=over, old=OldLogProbs(), last=True))
        old = OldLogProbs()
        for epoch in range(self.config.optim.epochs):
            old.recording = epoch == 0
            self._not_finite = None
            sums = self.budget.within(lambda: self._accumulate(groups, over, old))
            names, truncates = [term.name for term in self.rules.terms], self.config.method.truncate is not None
            trained = step_report.add_up(report, distributed.gather(sums), names, truncates)
            self._assert_finite()
            if epoch == 0 and gap is None:
                self.parity.check(report, trained, "selected")
            with _named_shortage(f"step {report.step}: the optimiser's step does not fit into memory"):
                self._step(report, last=epoch == self.config.optim.epochs - 1)
            self.policy.version += 1
        if self.reference is not None and self.rules.anchor_decay is not None:
            self.reference.follow(self.rules.anchor_decay)
        self._to_host()

    def assert_usable(self, done: int) -> None:
        """Raise NotFinite if the weights after `done` steps are not worth a checkpoint.

        They must be finite, and so must be the log-probs that they give the responses of one question of the last step:
        a step that is far too large leaves weights that are finite and overflow in every forward.
        """
        where = f"after {done} steps, nothing is saved; go on from the last checkpoint with a lower optim.lr"
        assert_finite(self.policy.trainable().items(), where)
        if self._last is None:
            return
        (last,) = self._first_within_budget(self._last)
        responses = [leaf.rollout.token_ids for leaf in last.leaves]
        try:
            score_responses(self.policy, [(last.question, responses)], self.distribution)
        except NotFinite as error:
            raise NotFinite(f"{last.question.id}: its responses' log-probs are not finite {where}") from error

    @property
    def moving_anchor(self) -> Reference | None:
        """The KL anchor where it follows the policy, so that a checkpoint must hold it; else None."""
        return None if self.rules.anchor_decay is None else self.reference

    def _step(self, report: StepReport, last: bool) -> None:
        """Take one optimiser step, without the anchor on the card where the configuration offloads it."""
        if self.reference is not None and self._offloads:
            self.reference.to_host()
        report.grad_norm, report.update_norm = self.engine.step(report.lr)
        if self.reference is not None and self._offloads and not last:
            self.reference.to_card()

    def _to_host(self) -> None:
        """Keep optimiser state and anchor in host memory, where the configuration asks for it."""
        if self._offloads:
            self.engine.to_host()
            if self.reference is not None:
                self.reference.to_host()

    def _to_card(self) -> None:
        if self._offloads:
            self.engine.to_card()
            if self.reference is not None:
                self.reference.to_card()

    def _assert_finite(self) -> None:
        """Raise NotFinite on all ranks if a loss, log-prob or gradient of the step is not finite on one of them."""
        found = [reason for reason in distributed.gather([self._not_finite]) if reason]
        if not found and not all(distributed.gather([self.engine.gradients_are_finite()])):
            found = ["the gradient is not finite"]
        if found:
            self.engine.discard()
            raise NotFinite(
                f"{found[0]}: no weight was moved by this step; go on from the last checkpoint with a lower optim.lr, "
                "or look at that question's images and prompt"
            )

    def _first_within_budget(self, group: LeafGroup) -> list[LeafGroup]:
        """Return a micro-batch of `group` alone, or of as many of its leaves as the budget holds."""
        return micro_batches(self.policy, [group], self.budget.at_once)[0]

    def _accumulate(self, groups: Sequence[LeafGroup], over: Denominators, old: OldLogProbs) -> list[Sums]:
        """Accumulate the gradient over all groups. Returns the sums of this rank's micro-batches."""
        # Here a rank encodes prompts that another one sampled from.
        mine = distributed.mine(groups)
        micros = distributed.on_all_or_none(
            lambda: micro_batches(self.policy, mine, self.budget.at_once), stops=RunStopped
        )
        rounds = max(distributed.gather([len(micros)]))
        sums = []
        for i in range(rounds):
            # Every rank must run the same number of micro-batches, or ZeRO-3 hangs. One too many counts for nothing.
            spare = i >= len(micros)
            self.budget.running = self._first_within_budget(groups[0]) if spare else micros[i]
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
        if self.reference is not None:
            with self.engine.other_weights():
                anchor = self.reference.anchor(micro.packed, self.divergence)
        trained = self.engine.forward(micro.packed, self.distribution, anchor, self._statistics)
        old_NT = micro.old_logp(old.of(groups, trained.stats.logp_NT.detach()))
        parts = losses(trained, micro, old_NT, self.config.method, over, self.on_bound, self.rules)
        self.engine.backward(scale * parts.total, last)
        sums = step_report.sums_of(micro, trained, parts, old_NT, self.config.method)
        # All of them are on the host already. An infinite KL estimate without a NaN is a gap, which parity reports.
        if not math.isfinite(sums.policy + sums.band + sums.kl + sums.terms.sum()) and self._not_finite is None:
            self._not_finite = _describe(groups, trained.stats.logp_NT.detach())
        return sums.scaled(scale)


@contextmanager
def _named_shortage(what: str) -> Iterator[None]:
    """Raise MemoryShortage saying `what` where memory runs out within the context. A smaller budget would not help."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        why = str(error).split(". ")[0]
        raise MemoryShortage(
            f"{what} ({why}): set engine.offload_while_sampling=true, or lower sampling.vllm.memory_share, and go on "
            "from the last checkpoint with --resume; in a new run, model.train=lora needs far less, and on several "
            "GPUs engine.zero_stage=2"
        ) from error


def _describe(groups: Sequence[LeafGroup], logp_NT: Tensor) -> str:
    """Say which question of a micro-batch has log-probs that are not finite, or that only the loss is not finite."""
    ids = [group.question.id for group in groups for _ in group.leaves]
    broken = (~torch.isfinite(logp_NT)).any(-1).tolist()
    bad = [name for name, is_bad in zip(ids, broken, strict=True) if is_bad]
    if bad:
        return f"{bad[0]}: the log-probs of its responses are not finite"
    return f"the loss is not finite in the micro-batch of {', '.join(dict.fromkeys(ids))}"
