"""summary.json: what a run counted, found out and cost, in one record."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from mm_spine import distributed, evaluation
from mm_spine.adapt import Adapted
from mm_spine.evaluation import Metrics, TagScores
from mm_spine.evaluation.answer_table import AnswerChanges
from mm_spine.evaluation.turned import TurnedAnswers, turned_by_split
from mm_spine.methods.table import changed_lines
from mm_spine.policy.image_cache import over_ranks
from mm_spine.policy.model import Policy
from mm_spine.runs.alarm import GuardRecord
from mm_spine.runs.machine import peak_memory
from mm_spine.runs.plan import Plan, Splits
from mm_spine.runs.settling import SettledRecord


class Summary(TypedDict):
    """The content of summary.json; docs/outputs.md says what each field means."""

    benchmark: str
    method: str
    model: str
    seed: int
    label_free: bool
    n_questions: int
    votes: int
    train_rollouts: int
    steps: int
    before: Metrics | None
    after: Metrics | None
    held_out: dict[str, Metrics | None] | None
    frozen_parameters: int
    trainable_parameters: int
    tower_checksum_unchanged: bool
    merger: str
    attention: str
    seconds: dict[str, float]
    tokens: dict[str, int]
    image_cache: dict[str, int]
    peak_memory_bytes: int
    stopped_by: str
    skipped: dict[str, str]
    fingerprint: str
    method_changes: list[str]
    breakdowns: dict[str, dict[str, dict[str, TagScores]]]
    bad_rows: list[str]
    missing_rollouts: list[int]
    lmms_eval: dict[str, Any] | None
    answers: dict[str, AnswerChanges]
    turned: dict[str, TurnedAnswers]
    labels: dict[str, Any] | None
    forecast: dict[str, Any] | None
    guard: GuardRecord | None
    settled: SettledRecord | None


@dataclass
class Seconds:
    """Where the time of a run went, by the clock. `total` includes what the other three leave out."""

    sample: float = 0.0
    update: float = 0.0
    evaluate: float = 0.0
    total: float = 0.0


@dataclass
class TokenTotals:
    """The rollouts that a run sampled, and the tokens that it sampled, saved, trained on and selected."""

    rollouts: int = 0
    sampled: int = 0
    tokens_saved: int = 0
    trained: int = 0
    selected: int = 0


@dataclass
class Totals:
    """The seconds and tokens of a run, added up while it goes on."""

    seconds: Seconds = field(default_factory=Seconds)
    tokens: TokenTotals = field(default_factory=TokenTotals)
    started: float = field(default_factory=time.perf_counter)

    def add_step(self, report: Mapping[str, Any], timing: Mapping[str, Any]) -> None:
        """Add one step, given as its lines of steps.jsonl and timings.jsonl."""
        self.seconds.sample += timing["sample"]
        self.seconds.update += timing["update"]
        self.tokens.rollouts += report["rollouts_sampled"]
        self.tokens.sampled += report["tokens_sampled"]
        self.tokens.tokens_saved += report["tokens_saved"]
        self.tokens.trained += report["tokens_trained"]
        self.tokens.selected += timing["selected"]

    def add_earlier_steps(self, lines: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> None:
        """Add the steps that an interrupted run left behind, their seconds to the total too."""
        for report, timing in lines:
            self.add_step(report, timing)
        self.started -= self.seconds.sample + self.seconds.update

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Add the time of the block to the seconds of evaluation."""
        started = time.perf_counter()
        yield
        self.seconds.evaluate += time.perf_counter() - started

    def stop(self) -> None:
        """Set the total seconds: the run is over."""
        self.seconds.total = time.perf_counter() - self.started


@dataclass
class Findings:
    """What a run has found out. `fingerprint` identifies the start that `before` belongs to, `missing_rollouts` steps
    whose file in rollouts/ is missing or damaged, `answers` the changes of each split's answers, `forecast` what
    the starting model's samples let expect, `guard` what the guard did (None: it was off),
    `settled` where the votes have settled."""

    fingerprint: str
    before: list[evaluation.Item]
    after: list[evaluation.Item]
    lmms_eval: dict[str, Any]
    missing_rollouts: list[int]
    answers: dict[str, AnswerChanges]
    forecast: dict[str, Any] | None
    guard: GuardRecord | None
    settled: SettledRecord | None


def summarise(
    plan: Plan, splits: Splits, policy: Policy, adapted: Adapted, findings: Findings, totals: Totals
) -> Summary:
    """Build the record of a finished run. Every rank must call this: it gathers from all of them."""
    config = plan.config
    trainable, frozen = policy.count_parameters()
    before, after = metrics_by_split(findings.before), metrics_by_split(findings.after)
    totals.stop()
    held_out = None
    if before["held_out"] is not None:
        held_out = {"before": before["held_out"], "after": after["held_out"]}
    cache_use = over_ranks(distributed.gather([policy.images.use()]))
    skipped = {name: why for of_rank in distributed.gather([policy.skipped]) for name, why in of_rank.items()}
    return Summary(
        benchmark=config.benchmark,
        method=config.method.name,
        model=config.model.path or Path(plan.model).name,
        seed=config.seed,
        label_free=plan.method.label_free,
        n_questions=len({item.id for item in findings.before if item.split == "adapted"}),
        votes=config.sampling.votes.max,
        train_rollouts=config.sampling.train_rollouts,
        steps=adapted.steps,
        before=before["adapted"],
        after=after["adapted"],
        held_out=held_out,
        frozen_parameters=frozen,
        trainable_parameters=trainable,
        # A run whose tower has changed raises FrozenError and has no summary.
        tower_checksum_unchanged=True,
        merger="trained" if config.model.train_merger else "frozen",
        attention=str(policy.kernels["text"]),
        seconds={name: round(value, 3) for name, value in asdict(totals.seconds).items()},
        tokens=asdict(totals.tokens),
        image_cache=asdict(cache_use),
        peak_memory_bytes=peak_memory(),
        stopped_by=adapted.stopped_by,
        skipped=skipped,
        fingerprint=findings.fingerprint,
        method_changes=changed_lines(config, plan.method),
        breakdowns={
            "before": _breakdown(plan, splits, findings.before),
            "after": _breakdown(plan, splits, findings.after),
        },
        bad_rows=splits.problems,
        missing_rollouts=findings.missing_rollouts,
        lmms_eval=findings.lmms_eval if config.evaluation.lmms_eval else None,
        answers=findings.answers,
        turned=turned_by_split(findings.before, findings.after),
        # `mm-spine label` fills this in.
        labels=None,
        forecast=findings.forecast,
        guard=findings.guard,
        settled=findings.settled,
    )


def metrics_by_split(items: Sequence[evaluation.Item]) -> dict[str, Metrics | None]:
    """Return the metrics of each split, None for a split that was not evaluated."""
    by_split: dict[str, Metrics | None] = {}
    for split in ("adapted", "held_out"):
        chosen = [item for item in items if item.split == split]
        by_split[split] = evaluation.metrics(chosen) if chosen else None
    return by_split


def _breakdown(plan: Plan, splits: Splits, items: Sequence[evaluation.Item]) -> dict[str, dict[str, TagScores]]:
    """Return the scores on the adapted split by the benchmark's tags."""
    adapted = [item for item in items if item.split == "adapted"]
    return evaluation.breakdown(adapted, splits.adapted.tags, plan.benchmark.breakdowns)
