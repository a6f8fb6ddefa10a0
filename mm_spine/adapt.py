"""The label-blind main loop.

sample -> vote -> reward, advantage -> select tokens -> forward, loss, backward, step -> sync -> report -> checkpoint.
There is no parameter through which a label could come, and this module may not import `evaluation`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mm_spine import distributed
from mm_spine.config import RunConfig, RunStopped
from mm_spine.methods.apply import BAND, assign_credit, by_step_loss, choose_tokens
from mm_spine.methods.method import Batch, Method
from mm_spine.methods.table import for_method
from mm_spine.methods.tokens import Tokens
from mm_spine.policy.finite import naming_step
from mm_spine.policy.model import Policy
from mm_spine.sampling import Sampler
from mm_spine.sampling.backend import assert_same_version, warn_of_cut_responses
from mm_spine.sampling.registry import make_sampler
from mm_spine.sampling.rounds import vote_in_rounds
from mm_spine.sampling.wordings import by_wording, rejoined
from mm_spine.training import checkpoint, step_report
from mm_spine.training.batch import gather_groups, share_identical, trained_groups
from mm_spine.training.fixed_band import measure_fixed_band
from mm_spine.training.loss import Denominators, Rules, denominators
from mm_spine.training.measuring import measure_on_all_ranks
from mm_spine.training.parity import Gap
from mm_spine.training.schedule import batch_of, check_askable, check_questions, further_questions, learning_rate
from mm_spine.training.scoring import needs_scores, score_on_all_ranks
from mm_spine.training.update import Updater
from mm_spine.types import Group, Question, StepReport
from mm_spine.voting import subsample

AUTO_SECONDS = 600.0
"""With `checkpoint.every: auto`, a checkpoint is written after the first step that ends so long after the last one."""


@dataclass(frozen=True, eq=False)
class StepRecord:
    """What a step leaves behind.

    `groups` have rewards and advantages, `tokens` their selected tokens; `seconds` is by phase, and `token_budget`
    the packed tokens of a micro-batch at the end of the step.
    """

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
    """What the caller is called with. None of it can change a step.

    `on_step` gets the record of each finished step, `on_part` the name of what begins: sample, score or update.
    `should_stop` is asked after each step and names the signal to stop for, or None. `checkpoints` is the folder of
    checkpoints; with `resume` the loop continues from the newest one there.
    """

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

    `config` (see `methods.table.configure`) defaults to the method's own options, `method` to `config.method.name`,
    `sampler` to the one of `config.sampling`. Where both are given, what the caller set in `config` wins over the
    options of `method`. Raises ConfigError, FrozenError, ParityError, NotFinite, MemoryShortage.
    """
    config, row = for_method(config, method)
    if row.check is not None:
        row.check(config.method)
    check_questions(questions)
    if not row.trains or config.optim.steps == 0:
        return Adapted()
    check_askable(questions, policy, config.sampling.max_new_tokens)
    sampler = sampler or make_sampler(policy, config, growth=row.grown(config.method, policy))
    loop = _Loop(questions, policy, sampler, row, config, hooks or Hooks())
    try:
        return loop.run()
    finally:
        loop.updater.engine.close()


class _Loop:
    """The state of one adaptation."""

    def __init__(
        self,
        questions: Sequence[Question],
        policy: Policy,
        sampler: Sampler,
        method: Method,
        config: RunConfig,
        hooks: Hooks,
    ) -> None:
        self.questions, self.policy, self.sampler = questions, policy, sampler
        self.method, self.config, self.hooks = method, config, hooks
        options = config.method
        decay = None if method.anchor_decay is None else method.anchor_decay(options)
        self.rules = Rules(method.objective(options), method.terms(options), decay)
        self.statistic = None if method.statistic is None else method.statistic(options)
        self.updater = Updater(policy, config, self.rules)
        self.memory: dict[str, Any] = {}
        self.seconds: dict[str, float] = {}
        self.saved_at = time.monotonic()
        self.warned_of_cuts = False

    def run(self) -> Adapted:
        """Take steps until all are done or a signal asks to stop. Checkpoints fall on step boundaries."""
        result = Adapted(steps=self._start())
        for step in range(result.steps, self.config.optim.steps):
            with naming_step(step):
                record = self.step(step)
            self.hooks.on_step(record)
            result.steps = step + 1
            stop = distributed.same_on_all(self.hooks.should_stop())
            # The last step's is what an evaluation that follows is resumed from.
            self._checkpoint(result.steps, forced=stop is not None or result.steps == self.config.optim.steps)
            if stop is not None:
                result.stopped_by = stop
                break
        if self.hooks.checkpoints is None:
            # Each checkpoint is checked before it is written, the last step's too.
            self.updater.assert_usable(result.steps)
        result.token_budget = self.updater.budget.tokens
        return result

    def step(self, step: int) -> StepRecord:
        """Run one rollout batch and its optimiser steps: the algorithm."""
        sampling, options = self.config.sampling, self.config.method
        self.seconds = {}
        batch = batch_of(self.questions, self.config, step)

        # Vote with many, train with few. Each rank samples its share of the questions.
        with self._timed("sample"):
            voted = self._voted(batch, step)
        within = [group for group in voted if sampling.votes.keeps(group.vote.share)]
        groups, gap = self._with_entropies(self._to_train(within))
        groups = self._measured(groups)

        # What the method says: a credit for each response, and the tokens that train.
        report = StepReport(step, lr=learning_rate(self.config, step))
        done, tokens, over = self._credited(Batch(groups, step, self.config.seed, self.memory), report)

        with self._timed("update"):
            trained = trained_groups(done.groups, tokens, options, self.rules.terms)
            # The forward of an update measures the gap between sampler and trainer. A step without one scores a
            # question of each rank for it: a broken sampler often gives nothing to train on, and must not go unseen.
            if gap is None and voted and not trained:
                _, gap = self._score((groups or self._to_train(voted))[: distributed.world_size()])
            self.updater.update(report, trained, over, gap)
        self.sampler.sync(self.policy.trainable().items())
        if not self.warned_of_cuts:
            sampled = [rollout for group in voted for rollout in group.rollouts]
            self.warned_of_cuts = warn_of_cut_responses(sampled, step)

        done, tokens = self._remembered(done, tokens, report)
        step_report.describe(report, voted, done.groups, tokens, sampling.votes.max)
        report.cache_hits = step_report.encodes_saved(self.policy, done.groups)
        if sampling.votes.keep is not None:
            report.questions_sampled, report.questions_kept = len(voted), len(within)
        whole, tokens = rejoined(done.groups, tokens, [group.question for group in within])
        return StepRecord(report, whole, tokens, self.seconds, self.updater.budget.at_once)

    def _credited(self, drawn: Batch, report: StepReport) -> tuple[Batch, list[list[Tokens]], Denominators]:
        """Return the batch with credit, earlier rollouts that the method replays among it; the tokens that train; and
        what the terms of the loss are averaged over."""
        method, options = self.method, self.config.method
        if method.replay is not None:
            drawn = drawn._replace(groups=method.replay(options)(drawn))
        done = drawn._replace(groups=assign_credit(drawn, method, options))
        tokens = choose_tokens(done, method, options)
        over = denominators(done.groups, tokens, options, self.rules.terms)
        if method.step_loss is not None:
            report.loss_step, tokens = by_step_loss(done, tokens, method.step_loss(options), options, over.policy)
        return done, tokens, over

    def _remembered(
        self, done: Batch, tokens: list[list[Tokens]], report: StepReport
    ) -> tuple[Batch, list[list[Tokens]]]:
        """Let the method remember what it wants to of the step's own rollouts. Return these and their tokens."""
        if self.method.replay is not None:
            done, tokens, report.replayed = step_report.without_replayed(done, tokens)
        if self.method.remember is not None:
            self.memory |= self.method.remember(self.config.method)(done, tokens)
            numbers = {name: value for name, value in self.memory.items() if isinstance(value, int | float)}
            report.memory = numbers or None
        return done, tokens

    def _voted(self, batch: Sequence[Question], step: int) -> list[Group]:
        """Sample and vote on a batch, and on further questions while too few votes are within `sampling.votes.keep`."""
        sampling, voted = self.config.sampling, list[Group]()
        further = (
            () if sampling.votes.keep is None else further_questions(self.questions, batch, self.config.seed, step)
        )
        asked = [*batch, *further][: len(batch) * sampling.votes.refill]
        first, end = 0, len(batch)
        while first < end:
            part = asked[first:end]
            mine = distributed.mine(part, sampling.ranks_together)
            share = distributed.on_all_or_none(partial(self._sample, mine, step), RunStopped)
            voted += gather_groups(share, part)
            # All ranks have the same groups here, so they go on alike.
            missing = len(batch) - sum(sampling.votes.keeps(group.vote.share) for group in voted)
            first, end = end, min(end + missing, len(asked))
        return voted

    def _to_train(self, groups: Sequence[Group]) -> list[Group]:
        """Keep the rollouts of each group that are trained on."""
        kept = [subsample(group, self.config.sampling.train_rollouts) for group in groups]
        return [share_identical(group) for group in self._by_wording(kept)]

    def _by_wording(self, groups: Sequence[Group]) -> list[Group]:
        return [part for group in groups for part in by_wording(group, self.config.sampling.wordings)]

    def _sample(self, questions: Sequence[Question], step: int) -> list[Group]:
        """Sample and vote on this rank's questions."""
        votes, least = self.config.sampling.votes, self.config.sampling.train_rollouts
        groups = vote_in_rounds(self.sampler, questions, votes, least, step=step, purpose="train")
        assert_same_version(self.sampler, self.policy, step)
        return groups

    def _with_entropies(self, groups: Sequence[Group]) -> tuple[list[Group], Gap | None]:
        """Score `groups` only where the method needs entropies that the sampler did not give, or has a statistic.

        That also measures the gap, else None.
        """
        if not needs_scores(groups, self.method):
            return list(groups), None
        with self._timed("update", part="score"):
            return self._score(groups)

    def _measured(self, groups: Sequence[Group]) -> list[Group]:
        """Have `groups` measured where the method's reward needs a further forward."""
        if self.method.asks is None and self.method.judge is None:
            return list(groups)
        with self._timed("update", part="score"):
            return measure_on_all_ranks(
                self.policy, groups, self.method, self.config.method, self.updater.distribution, self.updater.budget
            )

    def _score(self, groups: Sequence[Group]) -> tuple[list[Group], Gap]:
        updater = self.updater
        return score_on_all_ranks(self.policy, groups, updater.distribution, updater.budget, self.statistic)

    def _start(self) -> int:
        """Resume where the hooks ask for it. Returns the number of steps done."""
        done = 0
        if self.hooks.resume and self.hooks.checkpoints is not None:
            saved = checkpoint.resume(self.updater, self.hooks.checkpoints)
            done, self.memory = saved.step, saved.memory
            self.sampler.sync(self.policy.trainable().items())
        if BAND not in self.memory:
            self.memory |= measure_fixed_band(
                self.questions,
                self.sampler,
                self.method,
                self.config,
                lambda groups: self._with_entropies(self._by_wording(groups))[0],
            )
        return done

    def _checkpoint(self, done: int, forced: bool) -> None:
        if self.hooks.checkpoints is not None and (forced or self._checkpoint_due(done)):
            self.updater.assert_usable(done)
            checkpoint.save(self.updater, self.hooks.checkpoints, done, self.memory)
            self.saved_at = time.monotonic()

    def _checkpoint_due(self, done: int) -> bool:
        every = self.config.checkpoint.every
        if every == "auto":
            # By rank 0's clock, because all ranks must write the same checkpoint.
            return distributed.same_on_all(time.monotonic() - self.saved_at >= AUTO_SECONDS)
        return every > 0 and done % every == 0

    @contextmanager
    def _timed(self, phase: str, part: str | None = None) -> Iterator[None]:
        """Add the seconds of the block to `phase`, and announce it as `part`."""
        self.hooks.on_part(part or phase)
        started = time.perf_counter()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - started
