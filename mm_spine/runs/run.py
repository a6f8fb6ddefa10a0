"""evaluate -> adapt -> evaluate. Owns the output folder; the only place where labels and training meet,
and they meet in that order, never in one call (the control `oracle` excepted, and marked)."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import yaml

from mm_spine import distributed, evaluation, files, rollout_table
from mm_spine.adapt import Adapted, Hooks, StepRecord, adapt
from mm_spine.benchmarks import BENCHMARKS, Benchmark, resolve
from mm_spine.compat import version_of
from mm_spine.config import CacheConfig, ConfigError, RunConfig, VLLMConfig
from mm_spine.config_layers import merge, parse_overrides, read_yaml
from mm_spine.configs import shipped
from mm_spine.integrations import lmms_hook
from mm_spine.methods.table import Method, configure, find
from mm_spine.policy.errors import FrozenError
from mm_spine.policy.folder import check_model_folder, resolve_model
from mm_spine.policy.image_cache import over_ranks
from mm_spine.policy.kernels import backend_name
from mm_spine.policy.model import Policy, checksum
from mm_spine.reporting.responses import first_responses
from mm_spine.runs.listeners import trackers
from mm_spine.runs.listeners.live import Guarded, Plain, Step, View
from mm_spine.sampling import Sampler
from mm_spine.sampling.backend import Backend
from mm_spine.sampling.registry import check_sampler, make_sampler
from mm_spine.training.checkpoint import newest_checkpoint
from mm_spine.types import AnswerKey, LabelledSet
from mm_spine.words import nearest

log = logging.getLogger(__name__)

ROUNDING_ONLY = {
    *("engine.checkpoint_activations", "sampling.batch_rows", "sampling.kv_cache_gb"),
    *("evaluation.batch_rows", "evaluation.kv_cache_gb"),
    *(f"sampling.vllm.{name}" for name in VLLMConfig.model_fields),
}
"""Keys that a resumed run may change, with a warning: sums are then rounded in another order."""

SAID_BY_THE_LOOP = {"threads", "engine.token_budget"}
"""Likewise, but the loop compares what was in use."""

SHARED = "image-cache"
"""Folder of a run's image features, while several ranks work on it."""

NO_RESULT = {
    *("cache.memory_gb", "cache.folder", "cache.disk_gb", "reporting.completions", "reporting.trackers"),
    *("reporting.tracked_completions", "reporting.send_images", "reporting.images"),
    *("checkpoint.every", "checkpoint.keep", "engine.parity_limit"),
}
"""Keys that a resumed run may change without a word: no figure depends on them."""

AT_ONCE: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


def load_config(
    target: str, overrides: Sequence[str] = (), method: str | None = None, seed: int | None = None
) -> RunConfig:
    """A benchmark's name, a folder, or a YAML file -> the resolved configuration.

    Later wins: the method's own options, the YAML, `method` and `seed`, the overrides. Raises ConfigError.
    """
    path = Path(target)
    if path.suffix in (".yaml", ".yml"):
        layer = read_yaml(path)
    else:
        # By name only: a folder may stand beside a YAML file of its name.
        known = shipped(target) if target in BENCHMARKS else None
        layer = merge(read_yaml(known) if known else {}, {"benchmark": target})
    if method is not None:
        layer = merge(layer, {"method": {"name": method}})
    if seed is not None:
        layer = merge(layer, {"seed": seed})
    return configure(layer, parse_overrides(overrides))


@dataclass(frozen=True, eq=False)
class Plan:
    """A checked run: what can be wrong without fetching or loading a model is right. `model` is a folder or hub id."""

    config: RunConfig
    benchmark: Benchmark
    method: Method
    model: str

    def load(self, split: str) -> LabelledSet:
        """The questions of `split` that the run asks, from the configured source."""
        labelled = self.benchmark.load(split, self.config.source, self.config.prompt)
        return _first(labelled, self.config.limit)


def check(config: RunConfig, allow_labels: bool = False) -> Plan:
    """Raise ConfigError, ModelError or ValueError for what can be seen before a model loads."""
    benchmark, method = resolve(config.benchmark), find(config.method.name)
    if not method.label_free and not allow_labels:
        method.reward(config.method)
    if config.split is not None and config.split not in benchmark.splits:
        raise ConfigError(
            f"split={config.split!r}: {benchmark.name} has none such; {nearest(config.split, benchmark.splits)}"
        )
    _check_files(config)
    if config.source is not None and benchmark.source is None:
        raise ConfigError(f"source={config.source!r}: {benchmark.name} has no release to take from there; leave it out")
    if config.method.band_anchor == "initial" and method.bounds is None:
        raise ConfigError(f"method.band_anchor=initial: method {config.method.name!r} has no band")
    if config.scope == "question" and distributed.launched_processes() > 1:
        raise ConfigError("scope=question runs on one process: start one run per GPU, each with its own questions")
    check_sampler(config.sampling.backend)
    lmms_hook.check(config)
    trackers.check(config.reporting)
    model = config.model.path or benchmark.default_model
    if model is None:
        raise ConfigError(f"model.path is not set: benchmark {benchmark.name!r} ships no model of its own")
    if Path(model).exists():
        check_model_folder(Path(model))
    return Plan(config, benchmark, method, str(model))


def _check_files(config: RunConfig) -> None:
    before, deepspeed = config.evaluation.before, config.engine.deepspeed
    if before is not None and not (before / "summary.json").is_file():
        raise ConfigError(f"evaluation.before={before}: no finished run there (no summary.json)")
    if config.cache.folder is not None:
        _check_writable(config.cache.folder, "cache.folder=")
    if deepspeed is not None:
        try:
            files.read_json(deepspeed)
        except (OSError, ValueError) as error:
            raise ConfigError(f"engine.deepspeed={deepspeed}: cannot be read as JSON: {error}") from error


class Run:
    """One run and its folder. `execute` gives the summary; an interrupted run gives None and can be resumed."""

    def __init__(self, plan: Plan, output: Path, resume: bool = False, view: View | None = None) -> None:
        self.plan, self.output, self.resume = plan, output, resume
        self.config = plan.config
        self.main = distributed.rank() == 0
        self.view = Guarded(view or Plain()) if self.main else View()
        self.trackers = trackers.Trackers(self.config.reporting)
        self.all_steps = self.config.optim.steps
        self.seconds = {"sample": 0.0, "update": 0.0, "evaluate": 0.0, "total": 0.0}
        self.tokens = {"rollouts": 0, "sampled": 0, "tokens_saved": 0, "trained": 0, "selected": 0}
        self._started = time.perf_counter()

    def execute(self) -> dict[str, Any] | None:
        """Evaluate, adapt, evaluate; write everything of the output folder."""
        self._check_folder()
        self.view.phase("loading")
        adapted_set, held_out = self._load_questions()
        policy = Policy.load(resolve_model(self.plan.model), self.config.model, self.config.seed, self._cache())
        trainable, frozen = policy.count_parameters()
        log.info("parameters: %s trainable, %s frozen", f"{trainable:,}", f"{frozen:,}")
        tower = policy.tower_checksum()
        fingerprint = self._fingerprint(policy, adapted_set, held_out)
        self._check_shared_before(fingerprint)
        self._claim_folder()
        before = self._before(policy, adapted_set, held_out)
        outside = {"before": self._outside(policy, "before")}
        self._begin_steps(before, len(adapted_set.questions))
        if self.config.scope == "question":
            ended, after = self._adapt_each(policy, adapted_set)
        else:
            ended = self._adapt(policy, adapted_set)
            after = [] if ended.stopped_by != "steps" else self._after(policy, adapted_set, held_out, before)
        if ended.stopped_by == "steps":
            outside["after"] = self._outside(policy, "after") if self.plan.method.trains else outside["before"]
        if policy.tower_checksum() != tower:
            raise FrozenError("the vision tower's checksum changed during the run: its results are void")
        if ended.stopped_by != "steps":
            self._write("stopped.json", {"stopped_by": ended.stopped_by, "steps": ended.steps})
            return None
        self._step_accuracy(adapted_set)
        self._save(policy)
        summary = self._summary(policy, ended, before, after, fingerprint)
        summary |= self._about_questions(adapted_set, held_out, before, after)
        summary["lmms_eval"] = outside if self.config.evaluation.lmms_eval else None
        self._write("summary.json", summary)
        self._track_evaluation(ended.steps, summary)
        self._report(adapted_set, held_out)
        return summary

    def _cache(self) -> CacheConfig:
        """Ranks without a folder share one in the run's while it lasts: one of them encodes an image for all."""
        shared = self.config.cache.folder is None and distributed.world_size() > 1
        return self.config.cache.model_copy(update={"folder": self.output / SHARED}) if shared else self.config.cache

    def _check_folder(self) -> None:
        saved = self.output / "config.yaml"
        if self.resume:
            if self.config.scope == "question":
                raise ConfigError("scope=question keeps no checkpoints: start again in a new folder")
            if not saved.is_file():
                raise ConfigError(f"{self.output}: no config.yaml there, nothing to resume; start without --resume")
            _same_config(read_yaml(saved), self.config.model_dump(mode="json"), saved)
            if (self.output / "summary.json").is_file():
                raise ConfigError(f"{self.output}: that run is finished; choose another --output")
        elif saved.exists():
            raise ConfigError(f"{self.output}: already holds a run; choose another --output, or --resume to go on")
        _check_writable(self.output, "--output ")
        distributed.barrier()  # every rank has looked before the first one writes

    def _claim_folder(self) -> None:
        if not self.main:
            return
        self.output.mkdir(parents=True, exist_ok=True)
        config = yaml.safe_dump(self.config.model_dump(mode="json"), sort_keys=False)
        (self.output / "config.yaml").write_text(config)
        (self.output / "stopped.json").unlink(missing_ok=True)
        self._write("environment.json", environment(self.config.seed))
        self.trackers = trackers.start(self.output, self.config, self._steps_done() if self.resume else None)

    def _steps_done(self) -> int:
        """By the newest checkpoint, where the run goes on from one."""
        newest = newest_checkpoint(self.output / "checkpoints") if self.resume else None
        return int(files.read_json(newest / "state.json")["step"]) if newest else 0

    def _begin_steps(self, before: Sequence[evaluation.Item], questions: int) -> None:
        """Tell view and trackers that the training begins, or goes on after a first part that told them the rest."""
        done = self._steps_done()
        self.all_steps = self.config.optim.steps * (questions if self.config.scope == "question" else 1)
        if self.plan.method.trains and self.all_steps:
            self.view.phase("adapting", self.all_steps, done)
        if self.trackers and not done:
            blocks = {split: _metrics(before, split) or {} for split in ("adapted", "held_out")}
            self.trackers.figures({"evaluation": blocks}, 0)

    def _track_evaluation(self, steps: int, summary: Mapping[str, Any]) -> None:
        """What is known after the run: the evaluation at its last step, the accuracy of votes and rewards at theirs."""
        after = {"adapted": summary["after"] or {}, "held_out": (summary["held_out"] or {}).get("after", {})}
        self.trackers.figures({"evaluation": after}, steps)
        for when, step in (("before", 0), ("after", steps)):
            self.trackers.figures({"lmms_eval": (summary["lmms_eval"] or {}).get(when, {})}, step)
        accuracy = self.output / "evaluation" / "steps.jsonl"
        if self.trackers and accuracy.is_file():
            self.trackers.accuracy(files.read_json_lines(accuracy))

    def _load_questions(self) -> tuple[LabelledSet, LabelledSet | None]:
        benchmark, config = self.plan.benchmark, self.config
        adapted = self.plan.load(config.split or benchmark.adapt_split)
        wanted = config.evaluation.held_out and config.scope == "dataset" and config.split is None
        if not wanted or benchmark.held_out_split is None:
            return adapted, None
        held_out = benchmark.load(benchmark.held_out_split, config.source, config.prompt)
        return adapted, _first(held_out, config.evaluation.limit)

    def _evaluate(
        self, policy: Policy, adapted: LabelledSet, held_out: LabelledSet | None, when: str | None = None
    ) -> list[evaluation.Item]:
        started = time.perf_counter()
        settings = self.config.evaluation
        sampler = make_sampler(policy, self.config, settings)
        parts = {"adapted": _first(adapted, settings.limit), "held_out": held_out}
        if when is not None:
            shares = (len(distributed.mine(labelled.questions)) for labelled in parts.values() if labelled is not None)
            self.view.phase(f"evaluating {when}", sum(shares))
            _hear(sampler, lambda count: self.view.advance(count / (1 + settings.samples)))
        items = []
        for split, labelled in parts.items():
            if labelled is not None:
                share = distributed.mine(labelled.questions)
                part = evaluation.evaluate(share, labelled.key, sampler, samples=settings.samples, split=split)
                items += distributed.gather(part)
        self.seconds["evaluate"] += time.perf_counter() - started
        return items

    def _check_shared_before(self, fingerprint: str) -> None:
        source = self.config.evaluation.before
        if source is not None and files.read_json(source / "summary.json")["fingerprint"] != fingerprint:
            raise ConfigError(f"evaluation.before={source}: that run started from another model, data or evaluation")

    def _before(self, policy: Policy, adapted: LabelledSet, held_out: LabelledSet | None) -> list[evaluation.Item]:
        path = self.output / "evaluation" / "before.jsonl"
        source = self.config.evaluation.before
        if self.resume and path.is_file():
            return _read_items(path)
        if source is not None:
            items = _read_items(source / "evaluation" / "before.jsonl")
        else:
            log.info("evaluating the starting model")
            items = self._evaluate(policy, adapted, held_out, "before")
        self._write_items(path, items)
        return items

    def _after(
        self, policy: Policy, adapted: LabelledSet, held_out: LabelledSet | None, before: list[evaluation.Item]
    ) -> list[evaluation.Item]:
        if self.plan.method.trains:
            log.info("evaluating the adapted model")
            items = self._evaluate(policy, adapted, held_out, "after")
        else:
            items = before
        self._write_items(self.output / "evaluation" / "after.jsonl", items)
        return items

    def _adapt(self, policy: Policy, labelled: LabelledSet, offset: int = 0) -> Adapted:
        method = self._method(labelled.key)
        sampler = make_sampler(policy, self.config)
        _hear(sampler, self.view.sampled)
        asked = min(self.config.optim.questions_per_step, len(labelled.questions))
        most = {"sample": -(-asked // distributed.world_size()) * self.config.sampling.votes.max}
        with signals() as received:
            hooks = Hooks(
                on_step=lambda record: self._on_step(policy, record, offset),
                on_part=lambda part: self.view.part(part, most.get(part)),
                should_stop=lambda: received[-1] if received else None,
                checkpoints=self.output / "checkpoints" if self.config.scope == "dataset" else None,
                resume=self.resume and newest_checkpoint(self.output / "checkpoints") is not None,
            )
            self._drop_steps_after_checkpoint(hooks)
            return adapt(labelled.questions, policy, sampler, method, self.config, hooks)

    def _adapt_each(self, policy: Policy, labelled: LabelledSet) -> tuple[Adapted, list[evaluation.Item]]:
        """Each question from the same start, answered with the weights adapted to it alone."""
        start, items, ended = policy.weights(), [], Adapted()
        for question in labelled.questions:
            alone = LabelledSet((question,), labelled.key)
            before = ended.steps
            ended = self._adapt(policy, alone, offset=before)
            ended.steps += before
            if ended.stopped_by != "steps":
                break
            items += self._evaluate(policy, alone, None)
            policy.restore(start)
        self._write_items(self.output / "evaluation" / "after.jsonl", items)
        return ended, items

    def _method(self, key: AnswerKey) -> Method:
        """The method's row; the oracle's reward is put in here, from outside the loop."""
        method = self.plan.method
        if method.label_free:
            return method
        log.warning("method %s reads the labels: this run is not label-free", self.config.method.name)
        return replace(method, reward=lambda options: evaluation.oracle_reward(key))

    def _on_step(self, policy: Policy, record: StepRecord, offset: int) -> None:
        self._record(record, offset)
        done, every = record.report.step + 1, self.config.evaluation.lmms_eval_every
        if every and done % every == 0 and done < self.config.optim.steps:
            self._outside(policy, f"step_{done:06d}")

    def _outside(self, policy: Policy, when: str) -> dict[str, Any]:
        """lmms-eval's figures of the policy as it stands, if the run asks for them."""
        path, tasks = self.output / "evaluation" / "lmms_eval" / f"{when}.json", self.config.evaluation.lmms_eval
        if not tasks:
            return {}
        if self.resume and when == "before" and path.is_file():
            return lmms_hook.figures(files.read_json(path))
        started = time.perf_counter()
        log.info("lmms-eval (%s): %s", when, ", ".join(tasks))
        found = lmms_hook.evaluate(policy, self.config, strict=when == "before")
        self.seconds["evaluate"] += time.perf_counter() - started
        files.write_json(path, found)
        return lmms_hook.figures(found)

    def _record(self, record: StepRecord, offset: int) -> None:
        report = replace(record.report, step=record.report.step + offset)
        selected = [[chosen.policy_T.numpy() for chosen in group] for group in record.tokens]
        count = sum(int(mask.sum()) for group in selected for mask in group)
        timing = {"step": report.step, **record.seconds, "selected": count, "peak_memory_bytes": peak_memory()}
        timing["token_budget"] = record.token_budget
        self._count(vars(report), timing)
        if not self.main:
            return
        shown = first_responses(record.groups, self.config.reporting.completions)
        self.view.step(Step(report, self.all_steps, record.seconds, shown))
        self.view.advance()
        if self.config.reporting.rollouts:
            name = f"step_{report.step:06d}.parquet"
            rollout_table.write_rollouts(self.output / "rollouts" / name, record.groups, report.step, selected)
        files.JsonLines(self.output / "steps.jsonl").append(report)
        files.JsonLines(self.output / "timings.jsonl").append(timing)
        self.trackers.step(vars(report), timing, record.groups)

    def _count(self, report: Mapping[str, Any], timing: Mapping[str, Any]) -> None:
        """Add one step's tokens and seconds to the run's."""
        for phase in ("sample", "update"):
            self.seconds[phase] += timing[phase]
        self.tokens["rollouts"] += report["rollouts_sampled"]
        self.tokens["sampled"] += report["tokens_sampled"]
        self.tokens["tokens_saved"] += report["tokens_saved"]
        self.tokens["trained"] += report["tokens_trained"]
        self.tokens["selected"] += timing["selected"]

    def _drop_steps_after_checkpoint(self, hooks: Hooks) -> None:
        if not self.resume or not self.main or hooks.checkpoints is None:
            return
        done = self._steps_done()
        for name in ("steps.jsonl", "timings.jsonl"):
            files.JsonLines(self.output / name).truncate_after(done - 1)
        for path in (self.output / "rollouts").glob("step_*.parquet"):
            if int(path.stem.removeprefix("step_")) >= done:
                path.unlink()
        if done:
            kept = (files.read_json_lines(self.output / name) for name in ("steps.jsonl", "timings.jsonl"))
            for report, timing in zip(*kept, strict=True):
                self._count(report, timing)
            self._started -= self.seconds["sample"] + self.seconds["update"]

    def _step_accuracy(self, labelled: LabelledSet) -> None:
        """What the votes and rewards were worth, from the saved rollouts, after the training is over."""
        folder = self.output / "rollouts"
        if self.main and folder.is_dir() and labelled.key:
            rows = evaluation.step_accuracy(folder, labelled.questions, labelled.key, self.plan.benchmark.habit)
            files.write_json_lines(self.output / "evaluation" / "steps.jsonl", rows)

    def _save(self, policy: Policy) -> None:
        if self.main and self.plan.method.trains and self.config.scope == "dataset":
            aside = self.output / "adapted.writing"
            policy.save(aside)
            shutil.rmtree(self.output / "adapted", ignore_errors=True)
            aside.rename(self.output / "adapted")

    def _summary(
        self,
        policy: Policy,
        ended: Adapted,
        before: Sequence[evaluation.Item],
        after: Sequence[evaluation.Item],
        fingerprint: str,
    ) -> dict[str, Any]:
        config = self.config
        trainable, frozen = policy.count_parameters()
        self.seconds["total"] = time.perf_counter() - self._started
        blocks = {split: (_metrics(before, split), _metrics(after, split)) for split in ("adapted", "held_out")}
        held_out = blocks["held_out"]
        return {
            "benchmark": config.benchmark,
            "method": config.method.name,
            "model": config.model.path or Path(self.plan.model).name,
            "seed": config.seed,
            "label_free": self.plan.method.label_free,
            "n_questions": len({item.id for item in before if item.split == "adapted"}),
            "votes": config.sampling.votes.max,
            "train_rollouts": config.sampling.train_rollouts,
            "steps": ended.steps,
            "before": blocks["adapted"][0],
            "after": blocks["adapted"][1],
            "held_out": None if held_out[0] is None else {"before": held_out[0], "after": held_out[1]},
            "frozen_parameters": frozen,
            "trainable_parameters": trainable,
            "tower_checksum_unchanged": True,
            "merger": "trained" if config.model.train_merger else "frozen",
            "attention": backend_name(policy.device, policy.text.head.weight.dtype),
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
            "tokens": self.tokens,
            "image_cache": asdict(over_ranks(distributed.gather([policy.images.use()]))),
            "peak_memory_bytes": peak_memory(),
            "stopped_by": ended.stopped_by,
            "skipped": {name: why for skipped in distributed.gather([policy.skipped]) for name, why in skipped.items()},
            "fingerprint": fingerprint,
        }

    def _about_questions(
        self,
        adapted: LabelledSet,
        held_out: LabelledSet | None,
        before: Sequence[evaluation.Item],
        after: Sequence[evaluation.Item],
    ) -> dict[str, Any]:
        """Scores by the benchmark's tags, before and after, on the adapted split; the rows that lost something."""
        names = self.plan.benchmark.breakdowns
        parts = {"before": before, "after": after}
        mine = {when: [item for item in items if item.split == "adapted"] for when, items in parts.items()}
        problems = [*adapted.problems, *(held_out.problems if held_out else ())]
        return {
            "breakdowns": {when: evaluation.breakdown(items, adapted.tags, names) for when, items in mine.items()},
            "bad_rows": problems,
        }

    def _report(self, adapted: LabelledSet, held_out: LabelledSet | None) -> None:
        """report.html and what it shows of the questions that changed. Its failure must not cost the run."""
        if not self.main:
            return
        self.view.phase("report")
        try:
            from mm_spine.reporting import changes, report  # matplotlib takes a second to import

            asked = [*adapted.questions, *(held_out.questions if held_out else ())]
            before, after = (
                files.read_json_lines(self.output / "evaluation" / f"{when}.jsonl") for when in ("before", "after")
            )
            shown = changes.find_changes(before, after).shown()
            changes.save_for_report(self.output, shown, asked, self.config.reporting.images)
            report.write_report(self.output)
        except Exception:
            log.exception("the run is complete, its report is not; write it with: mm-spine report %s", self.output)

    def _fingerprint(self, policy: Policy, adapted: LabelledSet, held_out: LabelledSet | None) -> str:
        """Of the starting weights, the questions and how they are evaluated: equal ones share a "before"."""
        ids = [q.id for labelled in (adapted, held_out) if labelled for q in labelled.questions]
        ours = {name for name in type(self.config.evaluation).model_fields if not name.startswith("lmms_eval")}
        settings = self.config.evaluation.model_dump(mode="json", include=ours - {"before"})
        weights = checksum(policy.model.state_dict().items()) if policy.peft is None else self.plan.model
        return hashlib.sha256(json.dumps([weights, ids, settings, self.config.seed]).encode()).hexdigest()

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        if self.main:
            files.write_json(self.output / name, content)

    def _write_items(self, path: Path, items: Sequence[evaluation.Item]) -> None:
        if self.main:
            files.write_json_lines(path, [evaluation.to_json(item) for item in items])


def run(
    config: RunConfig, output: Path, *, resume: bool = False, allow_labels: bool = False, view: View | None = None
) -> dict[str, Any] | None:
    """Check, then execute. Returns summary.json's content, None if a signal stopped it (the run can be resumed).

    `view` hears how far the run is (`listeners.live`); log lines say so unless given.
    """
    plan = check(config, allow_labels)
    check_sampler(config.sampling.backend, load=True)
    distributed.initialise()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    this = Run(plan, output, resume, view)
    try:
        summary = this.execute()
    finally:
        this.trackers.close()
    distributed.barrier()  # what rank 0 wrote is there for all
    if summary is not None and distributed.rank() == 0:
        shutil.rmtree(output / SHARED, ignore_errors=True)
    return summary


def evaluate_model(config: RunConfig, output: Path | None = None, view: View | None = None) -> dict[str, Any]:
    """One metrics block of `config.model` on `config.split`; verdicts to `output` if given."""
    plan, view, samples = check(config), Guarded(view or Plain()), config.evaluation.samples
    check_sampler(config.sampling.backend, load=True)
    view.phase("loading")
    name = config.split or plan.benchmark.adapt_split
    labelled = plan.load(name)
    policy = Policy.load(resolve_model(plan.model), config.model, config.seed, config.cache)
    sampler = make_sampler(policy, config, config.evaluation)
    view.phase("evaluating", len(labelled.questions))
    _hear(sampler, lambda count: view.advance(count / (1 + samples)))
    items = evaluation.evaluate(labelled.questions, labelled.key, sampler, samples=samples, split=name)
    if output is not None:
        files.write_json_lines(output, [evaluation.to_json(item) for item in items])
    by_tag = evaluation.breakdown(items, labelled.tags, plan.benchmark.breakdowns)
    return {**evaluation.metrics(items), "skipped": policy.skipped, "bad_rows": labelled.problems, "breakdown": by_tag}


@contextmanager
def signals() -> Iterator[list[str]]:
    """SIGINT and SIGTERM are noted, so that the step can end and be checkpointed; a second one acts at once."""
    received: list[str] = []
    usual = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(number).name)
        handler = usual[signal.Signals(number)]
        # A shell that starts a job in the background has it ignore SIGINT; the second one must still stop it.
        signal.signal(number, AT_ONCE[number] if handler is signal.SIG_IGN else handler)
        log.warning("%s: finishing this step, then a checkpoint (again to stop at once)", received[-1])

    for number in usual:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)


def environment(seed: int) -> dict[str, Any]:
    """Versions, hardware, seed and commit, for whoever repeats the run."""
    packages = ("torch", "transformers", "deepspeed", "accelerate", "qwen-vl-utils", "peft", "numpy", "mm-spine")
    return {
        "python": platform.python_version(),
        "packages": {name: version_of(name) for name in packages},
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "processes": distributed.launched_processes(),
        "seed": seed,
        "commit": _commit(),
    }


def peak_memory() -> int:
    """Bytes: of the GPU where there is one, else of the process."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _commit() -> str | None:
    here = Path(__file__).resolve().parent
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _check_writable(folder: Path, name: str) -> None:
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise ConfigError(f"{name}{folder}: {place} is no folder to write to; choose another")


def _first(labelled: LabelledSet, limit: int | None) -> LabelledSet:
    return labelled if limit is None else replace(labelled, questions=labelled.questions[:limit])


def _metrics(items: Sequence[evaluation.Item], split: str) -> dict[str, Any] | None:
    chosen = [item for item in items if item.split == split]
    return evaluation.metrics(chosen) if chosen else None


def _read_items(path: Path) -> list[evaluation.Item]:
    return [evaluation.from_json(row) for row in files.read_json_lines(path)]


def _same_config(saved: Mapping[str, Any], given: Mapping[str, Any], path: Path) -> None:
    old, new = dict(_flat(saved)), dict(_flat(given))
    silent = NO_RESULT | SAID_BY_THE_LOOP
    changed = [key for key in sorted((old.keys() | new.keys()) - silent) if old.get(key) != new.get(key)]
    for key in changed:
        if key not in ROUNDING_ONLY:
            raise ConfigError(f"{path}: {key} was {old.get(key)!r}, now {new.get(key)!r}; resume with the same")
    for key in changed:
        log.warning(
            "resumed with %s=%s, written with %s: results may differ in rounding", key, new.get(key), old.get(key)
        )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _hear(sampler: Sampler, told: Callable[[int], None]) -> None:
    """Have `told` called with how many more responses the sampler's backend has finished."""
    backend = getattr(sampler, "backend", sampler)
    if isinstance(backend, Backend):
        backend.on_finished = told
