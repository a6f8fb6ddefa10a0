#!/usr/bin/env python3
"""Measure how far sampler and trainer are apart where all is right and with known faults, and what the limits catch.

    python scripts/bench/parity_limits.py GAPS.jsonl [--models digits,...] [--dtypes ...] [--seeds 5]

Every run takes seven steps: on 32 questions of the digits benchmark, or with a random tiny model on 16 made-up ones.
Each fault is then put into a single step of that run, by the training loop itself. The gaps are appended to GAPS.jsonl,
and runs that are in it already are not repeated. The table is of all gaps in the file, judged by the limits of
`mm_spine/training/parity.py`.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from drawn import markdown_table
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from families import SIDE
from small import BASE, digit_model
from tiny import tiny_processor, tiny_questions

from mm_spine.adapt import Hooks, StepRecord, adapt
from mm_spine.benchmarks import digits
from mm_spine.config import RunConfig
from mm_spine.methods.table import configure
from mm_spine.policy.distribution import Distribution
from mm_spine.policy.errors import ParityError
from mm_spine.policy.model import DTYPES, Policy
from mm_spine.runs.plan import load_config
from mm_spine.sampling.hf import HFSampler
from mm_spine.training.parity import (
    DRIFT_FACTOR,
    DRIFT_FLOORS,
    ERRORS,
    Gap,
    ParityWatch,
    mean_with_error,
    missing_with_error,
    slope_with_error,
)
from mm_spine.training.schedule import batch_of
from mm_spine.types import Question, Rollout, StepReport

MODELS = ("digits", "qwen2_5_vl", "qwen3_vl")
METHODS = ("ttrl", "spine", "rent", "low-entropy-mask")
STEPS = 7
TEMPERATURES = (0.7, 1.05, 1.1)
"""What the trainer's temperature is multiplied by."""
TOP_P, BIAS = 0.95, 0.1
TINY_RATES = {"full": 1e-4, "lora": 2e-3}
"""Learning rates of the tiny models: weights move, and no step changes the policy beyond recognition."""
HEALTHY, STALE = "none", "stale by"
SHOWN = ("digits", "tiny")
COLUMNS = (
    *("dtype", "fault", "mean gap (nats)", "mean gap / first step's", "slope of the gap", "missing probability"),
    *(f"{model}: stopped" for model in SHOWN),
)
LEGEND = (
    f"Median and range. A ratio is of the mean gap less {ERRORS:g} standard errors to the first step's and {ERRORS:g} "
    "standard errors more (at least a third of the floor); slope (absolute) and missing probability are less "
    f"{ERRORS:g} standard errors too, which is how the limits test them."
)

Drawn = Mapping[str, Sequence[Rollout]]
"""Question id -> its rollouts."""


class Run(NamedTuple):
    """What distinguishes the runs."""

    model: str
    dtype: str
    train: str
    method: str
    seed: int


class Found(NamedTuple):
    """The gap of one step of a run, with a fault or without (`HEALTHY`), and which tokens it is over."""

    run: Run
    fault: str
    step: int
    statistic: str
    gap: Gap


@dataclass(frozen=True)
class Nucleus(Distribution):
    """The distribution cut to its top-p nucleus, as a sampler reports it whose trainer knows nothing of it."""

    def log_probs(self, logits: Tensor) -> Tensor:
        """See `Distribution.log_probs`."""
        probs = super().log_probs(logits).exp()
        ranked, order = probs.sort(dim=-1, descending=True)
        outside = torch.zeros_like(probs, dtype=torch.bool).scatter(-1, order, ranked.cumsum(-1) - ranked >= TOP_P)
        return probs.masked_fill(outside, 0.0).div(probs.masked_fill(outside, 0.0).sum(-1, keepdim=True)).log()


@dataclass(frozen=True)
class Biased(Distribution):
    """The distribution with `BIAS` added to the logit of `token`."""

    token: int = 0

    def log_probs(self, logits: Tensor) -> Tensor:
        """See `Distribution.log_probs`."""
        bias = torch.zeros(logits.shape[-1])
        bias[self.token] = BIAS
        return super().log_probs(logits.float() + bias)


class Replay:
    """A sampler of rollouts that were drawn before."""

    def __init__(self, drawn: Drawn) -> None:
        self._drawn = drawn

    def sample(self, questions: Sequence[Question], n: int, **how: Any) -> list[list[Rollout]]:
        """See `Sampler.sample`."""
        return [list(self._drawn[question.id]) for question in questions]

    def sync(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Take over nothing."""


class Seen(Exception):
    """The gap is known; the step need not go on."""


def prepared(run: Run) -> tuple[Policy, RunConfig, list[Question]]:
    """Return the policy, the configuration and the questions of a run."""
    sizes: dict[str, Any] = {"votes": 8, "train_rollouts": 8}
    if run.model == "digits":
        keys = [f"sampling.{name}={value}" for name, value in sizes.items()]
        keys += [f"optim.steps={STEPS}", "optim.questions_per_step=8", "threads=1"]
        keys += [f"model.dtype={run.dtype}", f"model.train={run.train}"]
        config = load_config("digits", keys, run.method, run.seed)
        return Policy.load(digits.MODEL_DIR, config.model, run.seed), config, list(digits.load("adapt").questions[:32])
    layer = {
        "method": {"name": run.method, "kl": "none"},
        "model": {"train": run.train, "dtype": run.dtype},
        "sampling": {**sizes, "votes": {"max": 8, "cut_off": "count"}, "max_new_tokens": 12},
        "optim": {"steps": STEPS, "questions_per_step": 8, "lr": TINY_RATES[run.train]},
        "seed": run.seed,
    }
    config = configure({**BASE, "method": {}}, layer)
    model = digit_model(run.seed, run.model).to(DTYPES[config.model.dtype])
    with torch.random.fork_rng(devices=[]):
        policy = Policy(model, tiny_processor(run.model), config.model, run.seed)
    return policy, config, tiny_questions(16, side=SIDE.get(run.model, 28))


def measure(run: Run) -> Iterator[Found]:
    """Yield the gaps of the steps of a run, then those of one step with each fault."""
    policy, config, questions = prepared(run)
    weights: list[dict[str, Tensor]] = []
    records: list[StepRecord] = []
    steps: list[Found] = []

    def note(self: ParityWatch, report: StepReport, gap: Gap, statistic: str) -> None:
        steps.append(Found(run, HEALTHY, report.step, statistic, gap))

    def part(name: str) -> None:
        # A step begins with sampling: these are the weights that it samples and trains with.
        if name == "sample":
            weights.append(policy.weights())

    with mock.patch.object(ParityWatch, "check", note):
        adapt(questions, policy, config=config, hooks=Hooks(on_step=records.append, on_part=part))
    yield from steps
    yield from faults(run, policy, config, questions, weights, records[0])


def faults(
    run: Run,
    policy: Policy,
    config: RunConfig,
    questions: Sequence[Question],
    weights: Sequence[dict[str, Tensor]],
    first: StepRecord,
) -> Iterator[Found]:
    """Yield the gap of one step with each fault; `weights` are those at the start of each step, `first` step 0."""
    batch = batch_of(questions, config, 1)
    policy.restore(weights[0])
    said: Drawn = {group.question.id: group.rollouts for group in first.groups}
    for factor in TEMPERATURES:
        other = configure(
            config.model_dump(exclude_unset=True),
            {"sampling": {"temperature": factor * config.sampling.temperature}},
        )
        asked = [group.question for group in first.groups]
        yield from one_step(run, f"temperature x {factor:g}", policy, other, asked, said)
    tokens = [token for rollouts in said.values() for rollout in rollouts for token in rollout.token_ids]
    names = (config.sampling.temperature, policy.banned)
    wrong = {
        f"top-p {TOP_P:g}": Nucleus(*names),
        f"logit bias {BIAS:g}": Biased(*names, token=max(set(tokens), key=tokens.count)),
    }
    for fault, distribution in wrong.items():
        yield from one_step(run, fault, policy, config, batch, draw(policy, config, batch, distribution))
    drawn = draw(policy, config, batch, Distribution(*names))
    for behind in (1, STEPS - 1):
        policy.restore(weights[behind])
        yield from one_step(run, f"{STALE} {behind}", policy, config, batch, drawn)


def draw(policy: Policy, config: RunConfig, questions: Sequence[Question], distribution: Distribution) -> Drawn:
    """Return rollouts drawn from `distribution` with the policy's weights."""
    sampler = HFSampler(policy, config.sampling, config.seed)
    sampler.distribution = distribution
    groups = sampler.sample(questions, config.sampling.votes.max, step=1, purpose="train")
    return {question.id: group for question, group in zip(questions, groups, strict=True)}


def one_step(
    run: Run, fault: str, policy: Policy, config: RunConfig, questions: Sequence[Question], drawn: Drawn
) -> Iterator[Found]:
    """Yield the gap that the training loop finds in one step with these rollouts. No weight moves."""
    found: list[Found] = []

    def note(self: ParityWatch, report: StepReport, gap: Gap, statistic: str) -> None:
        found.append(Found(run, fault, 1, statistic, gap))
        raise Seen

    with mock.patch.object(ParityWatch, "check", note), suppress(Seen):
        adapt(questions, policy, Replay(drawn), config=config)
    yield from found


def load(path: Path) -> list[Found]:
    """Read the gaps that earlier calls have measured."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [Found(Run(*run), fault, step, statistic, Gap(*gap)) for run, fault, step, statistic, gap in rows]


def measure_all(runs: Iterable[Run], path: Path) -> None:
    """Append the gaps of those `runs` that are not yet in the file."""
    done = {found.run for found in load(path)}
    for run in runs:
        if run not in done:
            # All lines of a run at once, so that a run is either whole in the file or not in it.
            lines = [json.dumps(found) + "\n" for found in measure(run)]
            with path.open("a") as file:
                file.write("".join(lines))
            print(*run, file=sys.stderr)


def first_gaps(found: Iterable[Found]) -> dict[tuple[Run, str], Gap]:
    """Return the gap of the first step of each run, for each statistic."""
    firsts: dict[tuple[Run, str], Gap] = {}
    for each in found:
        if each.fault == HEALTHY:
            firsts.setdefault((each.run, each.statistic), each.gap)
    return firsts


def earlier(found: Found, firsts: Mapping[tuple[Run, str], Gap]) -> Gap | None:
    """Return the gap of the run's first step, None if this is the first.

    Weights can be stale only in later steps. The other faults are there from the first step on, and are then no
    different from it.
    """
    later = found.step > 0 if found.fault == HEALTHY else found.fault.startswith(STALE)
    return firsts.get((found.run, found.statistic)) if later else None


def caught(found: Found, first: Gap | None) -> bool:
    """Whether the limits that are shipped end the run."""
    watch = ParityWatch(DTYPES[found.run.dtype], None)
    try:
        for step, gap in enumerate([found.gap] if first is None else [first, found.gap]):
            watch.check(StepReport(step), gap, found.statistic)
    except ParityError:
        return True
    return False


def spread(values: Sequence[float]) -> str:
    """Write the median and the range of the values."""
    if not values:
        return ""
    ordered = sorted(values)
    return f"{ordered[len(ordered) // 2]:.2g} ({ordered[0]:.2g} to {ordered[-1]:.2g})"


def table(found: Sequence[Found]) -> str:
    """Write a row for each fault and dtype: its statistics, and in how many steps the limits catch it."""
    firsts = first_gaps(found)
    rows: dict[tuple[str, str], list[Found]] = {}
    for each in found:
        # At the starting weights, an adapter changes nothing: only stale weights differ by what is trained.
        name = f"{each.fault}, {each.run.train}" if each.fault.startswith(STALE) else each.fault
        rows.setdefault((each.run.dtype, name), []).append(each)
    cells = []
    for (dtype, name), members in sorted(rows.items(), key=lambda row: (row[0][0], order(row[0][1]))):
        pairs = [(each.gap, earlier(each, firsts)) for each in members]
        means = [(mean_with_error(gap), mean_with_error(first)) for gap, first in pairs if first is not None]
        # The first step's gap may be 0. Up to this one the floor is the limit.
        least = DRIFT_FLOORS[DTYPES[dtype]] / DRIFT_FACTOR
        tests = [(slope_with_error(gap), missing_with_error(gap)) for gap, _ in pairs]
        stopped = {model: [caught(e, earlier(e, firsts)) for e in members if model_of(e) == model] for model in SHOWN}
        cells.append(
            (
                dtype,
                name,
                spread([mean_with_error(gap)[0] for gap, _ in pairs]),
                spread(
                    [
                        (mean - ERRORS * error) / max(first + ERRORS * own, least)
                        for (mean, error), (first, own) in means
                    ]
                ),
                spread([abs(slope) - ERRORS * error for (slope, error), _ in tests]),
                spread([missing - ERRORS * error for _, (missing, error) in tests]),
                *(f"{sum(stops)} of {len(stops)}" for stops in stopped.values()),
            )
        )
    return markdown_table(COLUMNS, cells)


def model_of(found: Found) -> str:
    """Return the column of a run."""
    return "digits" if found.run.model == "digits" else "tiny"


def order(name: str) -> tuple[int, str]:
    """Sort the healthy runs before the faults."""
    return int(name != HEALTHY), name


def main() -> None:
    """Measure what is asked for and not in the file, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("gaps", type=Path)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--dtypes", default="bfloat16,float32")
    parser.add_argument("--trains", default="full,lora")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", type=int, default=5)
    asked = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    names = (asked.models, asked.dtypes, asked.trains, asked.methods)
    chosen = product(range(asked.seeds), *(each.split(",") for each in names))
    measure_all((Run(*run, seed) for seed, *run in chosen), asked.gaps)
    found = load(asked.gaps)
    print(table(found))
    print(f"\n{len({each.run for each in found})} runs of {STEPS} steps, {len(found)} gaps. {LEGEND}")


if __name__ == "__main__":
    main()
