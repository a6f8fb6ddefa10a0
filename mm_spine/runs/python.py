"""The functions of the Python interface: adapt a policy to a list of questions, and evaluate it on them.

`adapt` has no parameter through which a label could come: what it evaluates has no key. `mm_spine.adapt` and
`mm_spine.evaluate` are these two.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from threading import current_thread, main_thread

import pyarrow as pa

from mm_spine import evaluation
from mm_spine.adapt import Adapted, Hooks, StepRecord
from mm_spine.adapt import adapt as take_steps
from mm_spine.config import RunConfig
from mm_spine.files.rollout_table import rollouts_as_table
from mm_spine.methods.method import Method
from mm_spine.methods.table import configure, for_method
from mm_spine.policy.model import Policy
from mm_spine.runs.evaluate import evaluate_splits
from mm_spine.runs.listeners.finished_step import finished_step
from mm_spine.runs.listeners.listener import Listeners, Step, listen_to_sampler
from mm_spine.runs.listeners.notebook import following, in_notebook
from mm_spine.runs.model_card import base_of_policy
from mm_spine.runs.results import SPLIT, AdaptationResult, EvaluationResult, Golds, answer_key
from mm_spine.runs.signals import noted_signals
from mm_spine.sampling import Sampler
from mm_spine.sampling.registry import make_sampler
from mm_spine.training.schedule import check_askable, check_questions
from mm_spine.types import LabelledSet, Question


def adapt(
    questions: Sequence[Question],
    policy: Policy,
    sampler: Sampler | None = None,
    method: str | Method | None = None,
    config: RunConfig | None = None,
    hooks: Hooks | None = None,
    *,
    answers: bool = True,
    progress: bool = True,
) -> AdaptationResult:
    """Adapt `policy` in place to unlabelled `questions`; return its steps, rollouts and answers.

    `config` (see `configure`) defaults to the method's own options, `method` to `config.method.name`, `sampler` to the
    one of `config.sampling`. Where both are given, what the caller set in `config` wins over the options of `method`.
    `hooks` are called on the way.

    With `answers` the questions are asked before and after, as `config.evaluation` says; without, only the steps are
    taken. With `progress` the progress is shown in a notebook or a terminal, and logged elsewhere. In a notebook, an
    interrupt ends the adaptation after the step that is going on.

    Raises ConfigError, FrozenError, ParityError, NotFinite, MemoryShortage.
    """
    config, row = for_method(config, method)
    questions, hooks = tuple(questions), hooks or Hooks()
    _check(questions, policy, config.sampling.max_new_tokens)
    if not row.label_free:
        # The reward of a control refuses to be made without the labels: this raises.
        row.reward(config.method)
    with following(progress) as listeners:
        before = _asked(questions, policy, config, listeners, "asking before") if answers else None
        steps = _Steps(config, listeners, hooks)
        ended = steps.take(questions, policy, sampler, row)
        after = before
        if answers and row.trains and ended.steps:
            finished = ended.stopped_by == "steps"
            after = _asked(questions, policy, config, listeners, "asking after") if finished else None
    result = AdaptationResult(
        questions,
        config,
        row,
        base_of_policy(policy),
        ended,
        reports=[step.report for step in steps.done],
        timings=[step.timing for step in steps.done],
        tables=steps.tables,
        before=before,
        after=after,
    )
    if ended.steps:
        policy.card = result.card
    return result


def evaluate(
    questions: Sequence[Question],
    policy: Policy,
    key: Golds | None = None,
    *,
    samples: int | None = None,
    config: RunConfig | None = None,
    progress: bool = True,
) -> EvaluationResult:
    """Ask `policy` the questions: a greedy response and `samples` sampled ones each, and their vote.

    `key` (question id -> right answer, or a list of answers each of which is right) adds scores with intervals; it
    never reaches the sampling. `config` gives the settings of `config.evaluation`, `samples` replaces its number.
    The draws depend on the seed and the question only, so that two evaluations differ by their weights alone.

    Raises ConfigError where no question can be asked, ValueError for a key that has none of them, or an answer that is
    not of its question's kind.
    """
    config, questions = config or configure(), tuple(questions)
    if samples is not None:
        config = configure(config.model_dump(exclude_unset=True), {"evaluation": {"samples": samples}})
    _check(questions, policy, config.evaluation.max_new_tokens)
    golds = {} if key is None else answer_key(key, questions)
    with following(progress) as listeners:
        result = _asked(questions, policy, config, listeners, "asking")
    return result.graded(golds) if golds else result


def _check(questions: Sequence[Question], policy: Policy, new_tokens: int) -> None:
    """Raise ConfigError or ValueError for questions that cannot be asked or compared."""
    check_questions(questions)
    evaluation.check_kinds(questions)
    check_askable(questions, policy, new_tokens)


def _asked(
    questions: Sequence[Question], policy: Policy, config: RunConfig, listeners: Listeners, phase: str
) -> EvaluationResult:
    """Evaluate without a key."""
    items = evaluate_splits(policy, config, {SPLIT: LabelledSet(tuple(questions), {})}, listeners, phase)
    skipped = {question.id: policy.skipped[question.id] for question in questions if question.id in policy.skipped}
    return EvaluationResult(questions, items, skipped)


class _Steps:
    """Takes the steps of one adaptation and keeps what they leave behind."""

    def __init__(self, config: RunConfig, listeners: Listeners, hooks: Hooks) -> None:
        self.config, self.listeners, self.hooks = config, listeners, hooks
        # Without the groups, which hold every log-prob: those are in the tables, if they are to be kept.
        self.done: list[Step] = []
        self.tables: list[pa.Table] = []

    def take(self, questions: Sequence[Question], policy: Policy, sampler: Sampler | None, method: Method) -> Adapted:
        """Take the steps; the caller's hooks are called too."""
        if method.trains and self.config.optim.steps:
            growth = method.grown(self.config.method, policy)
            sampler = sampler or make_sampler(policy, self.config, growth=growth)
            listen_to_sampler(sampler, self.listeners.sampled)
            self.listeners.phase("adapting", self.config.optim.steps)
        # Signals can be noted in the main thread only.
        noting: AbstractContextManager[list[str]] = nullcontext([])
        if in_notebook() and current_thread() is main_thread():
            noting = noted_signals()
        with noting as received:
            hooks = replace(
                self.hooks,
                on_step=self._finish,
                on_part=self._begin,
                should_stop=lambda: received[-1] if received else self.hooks.should_stop(),
            )
            return take_steps(questions, policy, sampler, method, self.config, hooks)

    def _finish(self, record: StepRecord) -> None:
        reporting = self.config.reporting
        step = finished_step(record, self.config.optim.steps, reporting.completions)
        if reporting.rollouts:
            self.tables.append(rollouts_as_table(step.groups, step.report.step, step.selected))
        self.done.append(replace(step, groups=(), selected=()))
        self.listeners.step(step)
        self.listeners.advance()
        self.hooks.on_step(record)

    def _begin(self, part: str) -> None:
        self.listeners.part(part)
        self.hooks.on_part(part)
