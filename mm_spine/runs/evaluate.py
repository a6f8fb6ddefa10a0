"""Evaluation of a policy within a run, and of a model without one."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mm_spine import distributed, evaluation, files
from mm_spine.config import ConfigError, RunConfig, RunStopped
from mm_spine.evaluation import answer_table
from mm_spine.evaluation.vote_accuracy import step_accuracy
from mm_spine.files import fingerprint
from mm_spine.integrations import lmms_hook
from mm_spine.policy.folder import resolve_model
from mm_spine.policy.model import Policy
from mm_spine.runs.fingerprint import starting_weights
from mm_spine.runs.folder import RunFolder
from mm_spine.runs.listeners.listener import Listener, Listeners, listen_to_sampler
from mm_spine.runs.listeners.live import add_live
from mm_spine.runs.partial import PartialEvaluation
from mm_spine.runs.plan import Plan, Splits, check
from mm_spine.runs.summary import Totals
from mm_spine.sampling.registry import check_sampler, make_sampler
from mm_spine.training.schedule import check_askable
from mm_spine.types import LabelledSet, Question

log = logging.getLogger(__name__)


class Evaluations:
    """The evaluations of one run: each is timed, followed by the listeners and written to the run's folder."""

    def __init__(self, plan: Plan, folder: RunFolder, listeners: Listeners, totals: Totals, resume: bool) -> None:
        self.plan, self.config = plan, plan.config
        self.folder, self.listeners, self.totals = folder, listeners, totals
        self.resume = resume

    def before(self, policy: Policy, splits: Splits) -> list[evaluation.Item]:
        """Evaluate the starting model, or take the items from the interrupted run or from `evaluation.before`."""
        source = self.config.evaluation.before
        if self.resume and self.folder.evaluation_file("before").is_file():
            return self.folder.read_items("before")
        if source is not None:
            items = RunFolder(source).read_items("before")
        else:
            log.info("evaluating the starting model")
            items = self._of_splits(policy, splits, "before")
        self._write("before", items)
        return items

    def after(self, policy: Policy, splits: Splits, before: list[evaluation.Item]) -> list[evaluation.Item]:
        """Evaluate the adapted model. A method that does not train keeps the model, so its items are those before."""
        items = before
        if distributed.same_on_all(self.resume and self.folder.evaluation_file("after").is_file()):
            # Written by the interrupted run, from the same weights: `Run` has removed an older one.
            return self.folder.read_items("after")
        if self.plan.method.trains:
            log.info("evaluating the adapted model")
            items = self._of_splits(policy, splits, "after")
        self._write("after", items)
        return items

    def of_question(self, policy: Policy, labelled: LabelledSet) -> list[evaluation.Item]:
        """Evaluate the weights adapted to one question on this question. Writes no file."""
        with self.totals.evaluating():
            return evaluate_splits(policy, self.config, {"adapted": labelled}, self.listeners)

    def greedy(self, policy: Policy, questions: Sequence[Question]) -> dict[str, str]:
        """Return on every rank the greedy response to each question that could be asked, by its id."""
        with self.totals.evaluating():
            sampler = make_sampler(policy, self.config, self.config.evaluation)
            share = distributed.mine(questions, self.config.sampling.ranks_together)
            self.listeners.phase("checking the greedy answers", len(share))
            listen_to_sampler(sampler, self.listeners.advance)

            def ask() -> list[tuple[str, str]]:
                rollouts = sampler.sample(share, 1, step=0, purpose="evaluate", greedy=True)
                return [
                    (question.id, of_one[0].text) for question, of_one in zip(share, rollouts, strict=True) if of_one
                ]

            return dict(distributed.gather(distributed.on_all_or_none(ask, RunStopped)))

    def with_lmms(self, policy: Policy, when: str) -> dict[str, Any]:
        """Return lmms-eval's figures of the policy as it is now; none if the run does not ask for them."""
        path, tasks = self.folder.lmms_eval_file(when), self.config.evaluation.lmms_eval
        if not tasks:
            return {}
        if self.resume and when == "before" and path.is_file():
            return lmms_hook.figures(files.read_json(path))
        log.info("lmms-eval (%s): %s", when, ", ".join(tasks))
        with self.totals.evaluating():
            found = lmms_hook.evaluate(policy, self.config, strict=when == "before")
        files.write_json(path, found)
        return lmms_hook.figures(found)

    def grade_votes(self, labelled: LabelledSet, steps: int) -> list[int]:
        """Write evaluation/steps.jsonl: how often the votes and rewards of each of the `steps` steps were right.

        Returns the steps whose rollouts are missing. It reads the labels and the saved rollouts, so it must wait until
        the training is over.
        """
        if not self.folder.writes or not self.config.reporting.rollouts or not steps:
            return []
        missing = self.folder.missing_rollouts(steps)
        if missing:
            names = ", ".join(self.folder.rollouts_file(step).name for step in missing[:3])
            log.warning(
                "%s: %d of %d files are missing or damaged (%s%s); what these steps' votes were worth is not known",
                self.folder.rollouts, len(missing), steps, names, ", ..." if len(missing) > 3 else "",
            )  # fmt: skip
        if labelled.key and len(missing) < steps:
            rows = step_accuracy(self.folder.rollouts, labelled.questions, labelled.key, without=missing)
            files.write_json_lines(self.folder.evaluation_file("steps"), rows)
        return missing

    def _of_splits(self, policy: Policy, splits: Splits, when: str) -> list[evaluation.Item]:
        evaluated = splits.evaluated(self.config.evaluation.limit)
        partial_items = None
        if distributed.world_size() == 1:
            # A resumed run has the same data and weights: the run's fingerprint and its checkpoint are checked.
            ids = {split: [question.id for question in labelled.questions] for split, labelled in evaluated.items()}
            what = [when, self.config.optim.steps, ids, _settings(self.config), self.config.seed]
            partial_items = PartialEvaluation(self.folder.partial_file(when), what)
        with self.totals.evaluating():
            return evaluate_splits(policy, self.config, evaluated, self.listeners, f"evaluating {when}", partial_items)

    def _write(self, name: str, items: list[evaluation.Item]) -> None:
        self.folder.write_items(name, items)
        if self.folder.writes:
            self.folder.partial_file(name).unlink(missing_ok=True)


def evaluate_splits(
    policy: Policy,
    config: RunConfig,
    splits: Mapping[str, LabelledSet],
    listeners: Listeners,
    phase: str | None = None,
    done: PartialEvaluation | None = None,
) -> list[evaluation.Item]:
    """Evaluate the policy on each of `splits`, a share of the questions on every rank; return all ranks' items.

    With the name of a `phase`, the listeners follow its progress, one unit a question. Blocks that are `done` are not
    sampled again, and those sampled are added to it; it takes one process.
    """
    samples, block = config.evaluation.samples, config.evaluation.block
    sampler = make_sampler(policy, config, config.evaluation)
    together = config.sampling.ranks_together
    shares = {split: distributed.mine(labelled.questions, together) for split, labelled in splits.items()}
    if phase is not None:
        listeners.phase(phase, sum(map(len, shares.values())))
        # A question has one greedy response and `samples` sampled ones.
        listen_to_sampler(sampler, lambda count: listeners.advance(count / (1 + samples)))
    items: list[evaluation.Item] = []
    for split, share in shares.items():
        key, rules = splits[split].key, config.sampling.votes
        evaluation.check_key(share, key)
        graded = partial(evaluation.evaluate, key=key, sampler=sampler, samples=samples, split=split, rules=rules)
        work = partial(_by_blocks, share, block, graded, split, listeners, done)
        items += distributed.gather(distributed.on_all_or_none(work, RunStopped))
    return items


def _by_blocks(
    share: Sequence[Question],
    block: int,
    graded: Callable[[Sequence[Question]], list[evaluation.Item]],
    split: str,
    listeners: Listeners,
    done: PartialEvaluation | None,
) -> list[evaluation.Item]:
    items: list[evaluation.Item] = []
    for start in range(0, len(share), block):
        questions = share[start : start + block]
        found = None if done is None else done.block(split, start)
        if found is not None:
            listeners.advance(len(questions))
        else:
            found = graded(questions)
            if done is not None:
                done.add(split, start, found)
        items += found
    return items


def evaluate_model(config: RunConfig, output: Path | None = None, listener: Listener | None = None) -> dict[str, Any]:
    """Evaluate `config.model` on `config.split`, on one process. Returns its metrics.

    The verdicts go to `output` if given, the answers to a CSV file beside it. `listener` follows the progress; without
    one, log lines do.
    """
    plan, listeners = check(config), Listeners()
    add_live(listeners, listener)
    check_sampler(config.sampling.backend, load=True)
    listeners.phase("loading")
    split = config.split or plan.benchmark.adapt_split
    labelled = plan.load(split)
    policy = Policy.load(resolve_model(plan.model), config.model, config.seed, config.cache, prompt=config.prompt)
    check_askable(labelled.questions, policy, config.evaluation.max_new_tokens)
    done = None
    if output is not None:
        told = fingerprint.of_questions(labelled.questions)
        what = [_settings(config), config.seed, starting_weights(policy), told, sorted(labelled.key.items())]
        done = PartialEvaluation(output.with_suffix(".partial.jsonl"), what)
    items = evaluate_splits(policy, config, {split: labelled}, listeners, "evaluating", done)
    if output is not None and done is not None:
        files.write_json_lines(output, [evaluation.to_json(item) for item in items])
        files.write_csv(output.with_suffix(".csv"), answer_table.rows_of_one(labelled.questions, items))
        done.remove()
    by_tag = evaluation.breakdown(items, labelled.tags, plan.benchmark.breakdowns)
    return {**evaluation.metrics(items), "skipped": policy.skipped, "bad_rows": labelled.problems, "breakdown": by_tag}


def _settings(config: RunConfig) -> dict[str, Any]:
    """Return what the items of an evaluation depend on, beside model, data and seed."""
    asked, rules = config.prompt.model_dump(mode="json"), config.sampling.votes.model_dump(mode="json")
    left_out = {name for name in type(config.evaluation).model_fields if name.startswith("lmms_eval")}
    backend = config.sampling.backend, config.model.model_dump(mode="json", exclude={"path"})
    return {
        "evaluation": config.evaluation.model_dump(mode="json", exclude={*left_out, "before"}),
        "prompt": asked,
        "votes": rules,
        "sampler": backend,
    }


def shared_start(plan: Plan, policy: Policy, weights: str, splits: Splits) -> str:
    """Return a hash of the starting weights, the questions and the evaluation settings.

    Runs with equal fingerprints have the same evaluation "before", and may share it.
    """
    settings = plan.config.evaluation
    # lmms-eval writes figures of its own, and `before` is only where the items come from.
    left_out = {name for name in type(settings).model_fields if name.startswith("lmms_eval")} | {"before", "block"}
    kept = settings.model_dump(mode="json", include=type(settings).model_fields.keys() - left_out)
    kept["cut_off"] = plan.config.sampling.votes.cut_off
    # Only where they are set, so that runs of earlier versions keep their hash.
    if asked := plan.config.prompt.model_dump(mode="json", exclude={"style"}, exclude_defaults=True):
        kept["prompt"] = asked
    # With LoRA the weights of the adapter are new in each run; the base model identifies the start.
    start = weights if policy.peft is None else plan.model
    ids = [question.id for question in splits.questions]
    return hashlib.sha256(json.dumps([start, ids, kept, plan.config.seed]).encode()).hexdigest()


def check_shared_before(source: Path, start: str) -> None:
    """Raise ConfigError if the run in `source`, whose "before" is to be used, started from something else."""
    if files.read_json(source / "summary.json")["fingerprint"] != start:
        raise ConfigError(f"evaluation.before={source}: that run started from another model, data or evaluation")
