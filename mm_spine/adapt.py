"""The label-blind main loop.

sample -> vote -> reward, advantage -> select tokens -> forward, loss, backward, step -> sync -> report -> checkpoint.
There is no parameter through which a label could come, and this module may not import `evaluation`.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from mm_spine import distributed
from mm_spine.config import ConfigError, RunConfig, RunStopped
from mm_spine.draws import generator
from mm_spine.methods.table import Method, configure, find
from mm_spine.methods.weights import Bounds, BoundsRule, band_bounds, select
from mm_spine.policy.distribution import Distribution
from mm_spine.policy.model import Policy
from mm_spine.policy.reference import Reference
from mm_spine.sampling import Sampler
from mm_spine.sampling.registry import make_sampler
from mm_spine.sampling.rounds import vote_in_rounds
from mm_spine.training import step_report
from mm_spine.training.budget import TokenBudget
from mm_spine.training.engine import Engine
from mm_spine.training.update import (
    DIVERGENCES,
    Denominators,
    Gap,
    Row,
    Tokens,
    assign_credit,
    choose_tokens,
    collate,
    denominators,
    joined,
    losses,
    score,
    share_identical,
    trained_rows,
    whole_groups,
)
from mm_spine.types import Group, Question, StepReport
from mm_spine.voting import make_group, subsample

log = logging.getLogger(__name__)

PARITY_LIMITS = {torch.float32: 0.01, torch.bfloat16: 0.1}
"""Nats by which sampler and trainer may differ on average, unless the configuration says. Ours."""


class ParityError(RunStopped):
    """Sampler and trainer disagree about the policy."""


@dataclass(frozen=True, eq=False)
class StepRecord:
    """What a step leaves behind: its report, its groups with credit, their selected tokens, seconds by phase, and the
    token budget that it ended with."""

    report: StepReport
    groups: Sequence[Group]
    tokens: Sequence[Sequence[Tokens]]
    seconds: dict[str, float]
    token_budget: int


@dataclass
class Adapted:
    """How the loop ended: steps done, "steps" or the signal that stopped it, and the token budget in use."""

    steps: int = 0
    stopped_by: str = "steps"
    token_budget: int | None = None


@dataclass(frozen=True)
class Hooks:
    """What the outside may do at a step boundary, and hears when a step begins to sample, score or update; none of it
    can change the step."""

    on_step: Callable[[StepRecord], None] = lambda record: None
    on_part: Callable[[str], None] = lambda part: None
    should_stop: Callable[[], str | None] = lambda: None
    checkpoints: Path | None = None
    resume: bool = False


def adapt(
    questions: Sequence[Question],
    policy: Policy,
    sampler: Sampler | None = None,
    method: str | Method | None = None,
    config: RunConfig | None = None,
    hooks: Hooks | None = None,
) -> Adapted:
    """Adapt `policy` in place to unlabelled `questions`.

    `config` (see `methods.configure`) defaults to the method's own options, `method` to `config.method.name`,
    `sampler` to `config.sampling`'s. Raises ConfigError, FrozenError, ParityError, MemoryShortage.
    """
    config = config or configure({"method": {"name": method}} if isinstance(method, str) else {})
    row = method if isinstance(method, Method) else find(method or config.method.name)
    hooks = hooks or Hooks()
    _check(questions)
    if not row.trains or config.optim.steps == 0:
        return Adapted()
    loop = _Loop(questions, policy, sampler or make_sampler(policy, config), row, config)
    try:
        return loop.run(hooks)
    finally:
        loop.engine.close()


class OldLogProbs:
    """The policy before the first optimiser step on a batch: that step's own forward records it, ratio 1 and no pass
    besides; the epochs after it recall it."""

    def __init__(self) -> None:
        self.recording = True
        self._known: dict[int, Tensor] = {}

    def of(self, rows: Sequence[Row], logp_NT: Tensor) -> Tensor:
        """Old log-probs (N, T) of the leaves of `rows`, whose detached log-probs of now are `logp_NT`."""
        leaves = [id(leaf) for row in rows for leaf in row.leaves]
        if self.recording:
            self._known.update(zip(leaves, logp_NT, strict=True))
            return logp_NT
        # Another partition of the rows may be padded to another width.
        width = logp_NT.shape[1]
        known = [self._known[leaf][:width] for leaf in leaves]
        return torch.stack([pad(known_T, (0, width - len(known_T))) for known_T in known])


class _Loop:
    """The state of one adaptation."""

    def __init__(
        self, questions: Sequence[Question], policy: Policy, sampler: Sampler, method: Method, config: RunConfig
    ) -> None:
        self.questions, self.policy, self.sampler = questions, policy, sampler
        self.method, self.config = method, config
        self.options = config.method
        self.distribution = Distribution(config.sampling.temperature, policy.banned)
        self.divergence = DIVERGENCES[self.options.kl]
        self.reference = Reference(policy) if self.divergence else None
        self.engine = Engine(policy, config.optim, config.engine)
        self.budget = TokenBudget(config.engine.token_budget, policy, self.engine)
        self.anchored: Bounds | None = None
        self.result = Adapted()
        self.seconds: dict[str, float] = {}
        self._on_part: Callable[[str], None] = Hooks.on_part

    def run(self, hooks: Hooks) -> Adapted:
        """Steps until done or told to stop; checkpoints at step boundaries."""
        self._on_part = hooks.on_part
        first = self._start(hooks)
        for step in range(first, self.config.optim.steps):
            hooks.on_step(self.step(step))
            self.result.steps = step + 1
            stop = distributed.same_on_all(hooks.should_stop())
            self._checkpoint(hooks, step + 1, forced=stop is not None)
            if stop is not None:
                self.result.stopped_by = stop
                break
        self.result.token_budget = self.budget.tokens
        return self.result

    def step(self, step: int) -> StepRecord:
        """One rollout batch and its optimiser steps: the algorithm."""
        sampling, options = self.config.sampling, self.options
        self.seconds = {}
        with self._timed("sample"):
            batch, least = batch_of(self.questions, self.config, step), sampling.train_rollouts
            asked = distributed.mine(batch)
            drawn = vote_in_rounds(self.sampler, asked, sampling.votes, least, step=step, purpose="train")
            voted = self._everyones(drawn, batch)
        kept = [share_identical(subsample(group, least)) for group in voted]
        groups, gap = self._scored(kept)
        groups = assign_credit(groups, self.method, options)
        tokens = choose_tokens(groups, self.method, options, self.config.seed, step, self.anchored)
        with self._timed("update"):
            rows = trained_rows(groups, tokens, options)
            report = self._update(step, rows, denominators(tokens, options), gap or self._gap_of_the_idle(rows, groups))
        self.sampler.sync(self.policy.trainable().items())
        step_report.describe(report, voted, groups, tokens, sampling.votes.max)
        report.cache_hits = self._encodes_saved(groups)
        return StepRecord(report, groups, tokens, self.seconds, self.budget.at_once)

    def _scored(self, groups: Sequence[Group]) -> tuple[list[Group], Gap | None]:
        """Entropies by a pass of our own, only where the sampler gave none; then the gap is known before the update."""
        if all(rollout.entropy is not None for group in groups for rollout in group.rollouts):
            return list(groups), None
        with self._timed("update", part="score"):
            return self._score(groups)

    def _score(self, groups: Sequence[Group]) -> tuple[list[Group], Gap]:
        share = distributed.mine(groups)
        scored, gap = self.budget.within(lambda: score(self.policy, share, self.distribution, self.budget.at_once))
        return self._everyones(scored, [group.question for group in groups]), joined(distributed.gather([gap]))

    def _gap_of_the_idle(self, rows: Sequence[Row], groups: Sequence[Group]) -> Gap | None:
        """The gap of a step that trains nothing, whose forward would have measured it: none goes without."""
        return self._score(groups)[1] if groups and not rows else None

    def _everyones(self, share: Sequence[Group], questions: Sequence[Question]) -> list[Group]:
        """All ranks' groups, in the order of `questions` however many could not be asked. Images do not travel, and
        questions stay the objects by which the policy knows prompts."""
        light = [replace(group, question=replace(group.question, images=())) for group in share]
        groups = {group.question.id: group for group in distributed.gather(light)}
        return [replace(groups[q.id], question=q) for q in questions if q.id in groups]

    def _update(self, step: int, rows: Sequence[Row], over: Denominators, gap: Gap | None) -> StepReport:
        report = StepReport(step, lr=learning_rate(self.config, step))
        if gap is not None:
            self._check_parity(report, gap)
        if not rows:
            return report
        self.budget.find(rows, partial(self._backward, over=over, old=OldLogProbs(), last=True))
        old = OldLogProbs()
        for epoch in range(self.config.optim.epochs):
            old.recording = epoch == 0
            totals = self.budget.within(lambda: self._accumulate(rows, over, old))
            trained = step_report.add_up(report, distributed.gather(totals))
            if epoch == 0 and gap is None:
                self._check_parity(report, trained)
            report.grad_norm, report.update_norm = self.engine.step(report.lr)
        return report

    def _accumulate(self, rows: Sequence[Row], over: Denominators, old: OldLogProbs) -> list[dict[str, float]]:
        """The gradient of one optimiser step over all rows. Returns the sums of this rank's micro-batches."""
        micros = whole_groups(self.policy, distributed.mine(rows), self.budget.at_once)
        rounds = max(distributed.gather([len(micros)]))
        totals: list[dict[str, float]] = []
        for i in range(rounds):
            # Every rank runs the same number of micro-steps, or ZeRO-3 hangs: a spare one counts for nothing.
            spare = i >= len(micros)
            self.budget.running = [rows[0]] if spare else micros[i]
            scale = 0.0 if spare else 1.0
            totals.append(self._backward(self.budget.running, over, old, scale, last=i == rounds - 1))
        self.budget.running = ()
        return totals

    def _backward(
        self, rows: Sequence[Row], over: Denominators, old: OldLogProbs, scale: float = 1.0, last: bool = False
    ) -> dict[str, float]:
        micro = collate(self.policy, rows)
        anchor = None
        if self.reference is not None and self.divergence is not None:
            anchor = self.reference.anchor(micro.packed, self.divergence)
        trained = self.engine.forward(micro.packed, self.distribution, anchor)
        old_NT = old.of(rows, trained.stats.logp_NT.detach())
        parts = losses(trained, micro, old_NT, self.options, over)
        self.engine.backward(scale * (parts.policy + parts.band + parts.kl), last)
        return {name: scale * x for name, x in step_report.sums(micro, trained, parts, old_NT, self.options).items()}

    def _encodes_saved(self, groups: Sequence[Group]) -> int:
        """Image encodes that a tower run per rollout would have added: a figure of the step alone."""
        share = [(self.policy.prompt(g.question).image_keys, len(g.rollouts)) for g in distributed.mine(groups)]
        used = distributed.gather(share)
        return sum(len(keys) * rollouts for keys, rollouts in used) - len({key for keys, _ in used for key in keys})

    def _start(self, hooks: Hooks) -> int:
        state: dict[str, Any] = {}
        if hooks.resume and hooks.checkpoints is not None:
            state = self.engine.resume(hooks.checkpoints)
            if state["token_budget_set"] == self.config.engine.token_budget:
                self.budget.tokens = state["token_budget"]
            self._warn_of_changes(state)
        if state.get("anchored"):
            self.anchored = Bounds(*(torch.tensor(bound) for bound in state["anchored"]))
        elif self.method.bounds is not None and self.options.band_anchor == "initial":
            self.anchored = self._measure_anchor(self.method.bounds(self.options))
        self.result.steps = state.get("step", 0)
        return self.result.steps

    def _measure_anchor(self, rule: BoundsRule) -> Bounds | None:
        """The band of the starting model: one rollout pass over the first batch that can be asked; None without one."""
        for step in range(self.config.optim.steps):
            questions = batch_of(self.questions, self.config, step)
            rollouts = self.sampler.sample(questions, self.config.sampling.train_rollouts, step=step, purpose="anchor")
            drawn = [make_group(q, r) for q, r in zip(questions, rollouts, strict=True) if r]
            if drawn:
                groups, _ = self._scored(drawn)
                entropies = [torch.from_numpy(rollout.entropy) for group in groups for rollout in group.rollouts]
                masks = select(entropies, self.method.band_mask(self.options), self.options.mask_scope)
                return band_bounds(entropies, masks, rule, "batch")[0]
        return None

    def _checkpoint(self, hooks: Hooks, done: int, forced: bool) -> None:
        every = self.config.checkpoint.every
        if hooks.checkpoints is None or not (forced or (every and done % every == 0)):
            return
        anchored = None if self.anchored is None else [float(bound) for bound in self.anchored]
        state = {
            **self._fingerprint(),
            "token_budget_set": self.config.engine.token_budget,
            "anchored": anchored,
        }
        self.engine.save(hooks.checkpoints, done, state, self.config.checkpoint.keep)

    def _fingerprint(self) -> dict[str, Any]:
        return {
            "world_size": distributed.world_size(),
            "threads": torch.get_num_threads(),
            "token_budget": self.budget.tokens,
        }

    def _warn_of_changes(self, state: dict[str, Any]) -> None:
        for name, now in self._fingerprint().items():
            if state[name] != now:
                log.warning(
                    "resumed with %s=%s, written with %s: results may differ in rounding", name, now, state[name]
                )

    def _check_parity(self, report: StepReport, gap: Gap) -> None:
        """Before any weight moves: rollouts of another policy train nothing."""
        step_report.describe_gap(report, gap)
        limit = self.config.engine.parity_limit or PARITY_LIMITS[self.policy.text.head.weight.dtype]
        if not report.parity_mean <= limit:  # nan, too
            raise ParityError(
                f"step {report.step}: sampler and trainer log-probs differ by {report.parity_mean:.3g} nats on average "
                f"(engine.parity_limit={limit}): check that the sampler took over the last weights, and that "
                "temperature and dtype are the same on both sides"
            )

    @contextmanager
    def _timed(self, phase: str, part: str | None = None) -> Any:
        self._on_part(part or phase)
        started = time.perf_counter()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - started


def batch_of(questions: Sequence[Question], config: RunConfig, step: int) -> list[Question]:
    """The questions of a step: a stream of seeded permutations, cut into batches; a function of the step alone."""
    size = min(config.optim.questions_per_step, len(questions))
    places = range(step * size, (step + 1) * size)
    orders = {epoch: _order(len(questions), config.seed, epoch) for epoch in {p // len(questions) for p in places}}
    chosen = (int(orders[p // len(questions)][p % len(questions)]) for p in places)
    return [questions[i] for i in dict.fromkeys(chosen)]


def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    return generator(seed, "order", epoch).permutation(count)


def learning_rate(config: RunConfig, step: int) -> float:
    """Warm-up, then constant, or linear or cosine decay to 0 at the last step; a function of the step alone."""
    optim = config.optim
    warmup = optim.warmup * optim.steps
    if step < warmup:
        return optim.lr * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(optim.steps - warmup, 1)
    factors = {"constant": 1.0, "linear": 1 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress))}
    return optim.lr * factors[optim.schedule]


def _check(questions: Sequence[Question]) -> None:
    if not questions:
        raise ConfigError("no questions to adapt to")
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            raise ConfigError(f"question id {question.id!r} occurs twice: ids must be unique, draws depend on them")
        seen.add(question.id)
