"""One run: evaluate, adapt, evaluate.

This is the only place where labels and training meet: the evaluations read the labels, the adaptation between them
does not. The one exception is the control `oracle`, whose runs are marked as not label-free.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from mm_spine import distributed, evaluation, files
from mm_spine.adapt import Adapted, Hooks, StepRecord, adapt
from mm_spine.config import CacheConfig, RunConfig, RunStopped
from mm_spine.evaluation import answer_table, forecast
from mm_spine.methods.method import Method
from mm_spine.methods.table import changed_lines
from mm_spine.policy.errors import FrozenError
from mm_spine.policy.folder import resolve_model
from mm_spine.policy.model import Policy
from mm_spine.runs import fingerprint, model_card
from mm_spine.runs.evaluate import Evaluations, check_shared_before, shared_start
from mm_spine.runs.folder import RunFolder
from mm_spine.runs.greedy_check import greedy_fall
from mm_spine.runs.guard import GUARD, Guard, drawn_alike
from mm_spine.runs.hosts import check_same_start, check_shared_folders, failing_together, warn_of_whole_weights
from mm_spine.runs.listeners.files import StepFiles
from mm_spine.runs.listeners.finished_step import finished_step
from mm_spine.runs.listeners.listener import Listener, Listeners, listen_to_sampler
from mm_spine.runs.listeners.live import add_live
from mm_spine.runs.listeners.trackers.registry import open_trackers
from mm_spine.runs.machine import environment
from mm_spine.runs.plan import Plan, Splits, check, partitions
from mm_spine.runs.settling import SETTLED, Settling, warn_of_few_repeats
from mm_spine.runs.signals import noted_signals
from mm_spine.runs.summary import Findings, Summary, Totals, metrics_by_split, summarise
from mm_spine.sampling.registry import check_sampler, make_sampler
from mm_spine.training.engine import zero_settings
from mm_spine.training.schedule import check_askable
from mm_spine.types import AnswerKey, LabelledSet

log = logging.getLogger(__name__)


def run(
    config: RunConfig,
    output: str | Path,
    *,
    resume: bool = False,
    allow_labels: bool = False,
    listener: Listener | None = None,
) -> Summary | None:
    """Check the configuration, then run it in the folder `output`.

    Returns the content of summary.json, or None if a signal stopped the run, which can then be resumed. `listener`
    follows the progress (see `listeners.live`); without one, log lines do.
    """
    output = Path(output)
    plan = check(config, allow_labels)
    check_sampler(config.sampling.backend, load=True)
    distributed.initialise()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    this = Run(plan, output, resume, listener)
    try:
        summary = this.execute()
    except OSError as error:
        if error.errno not in files.DISK_FULL:
            raise
        raise RunStopped(
            f"{error.filename or output}: could not be written ({error.strerror}); what the run wrote before is whole: "
            "make room, then go on with --resume"
        ) from error
    finally:
        this.listeners.close()
        this.folder.unlock()
    # After this, all ranks may read what rank 0 wrote.
    distributed.barrier()
    if summary is not None and distributed.rank() == 0:
        shutil.rmtree(this.folder.shared_cache, ignore_errors=True)
    return summary


class Run:
    """One run and its folder. Every rank has one; rank 0 writes the files and has the listeners."""

    def __init__(self, plan: Plan, output: Path, resume: bool = False, listener: Listener | None = None) -> None:
        self.plan, self.config = plan, plan.config
        self.folder = RunFolder(output, resume)
        self.resume = resume
        self.totals = Totals()
        self.all_steps = self.config.optim.steps
        self.listeners = Listeners()
        if self.folder.writes:
            self.listeners.add("writing steps", StepFiles(self.folder, self.config.reporting.rollouts), required=True)
            add_live(self.listeners, listener)
        self.evaluations = Evaluations(plan, self.folder, self.listeners, self.totals, resume)

    def execute(self) -> Summary | None:
        """Evaluate, adapt, evaluate. Returns None if a signal stopped the adaptation.

        Raises FrozenError if the vision tower has changed.
        """
        # Load the questions and the model, and claim the folder once nothing can be refused any more.
        check_shared_folders(self.folder.path, self.plan.model)
        self.folder.check(self.config)
        self.listeners.phase("loading")
        for change in changed_lines(self.config, self.plan.method) if self.folder.writes else ():
            log.info("method %s runs with %s", self.config.method.name, change)
        with failing_together():
            splits = self.plan.load_splits()
        if self.resume and self.folder.finished:
            return self._finish_report(splits)
        with failing_together():
            policy = self._load_policy()
        check_askable(splits.adapted.questions, policy, self.config.sampling.max_new_tokens)
        tower = policy.tower_checksum()
        start = self._check_start(policy, splits)

        # Evaluate the starting model.
        before = self.evaluations.before(policy, splits)
        expected = self._forecast(splits, before)
        lmms = {"before": self.evaluations.with_lmms(policy, "before")}
        self._announce_adaptation(before, splits)

        # Adapt, without labels.
        guard, settling = self._guard(policy, before), self._settling(splits)
        if self.config.scope == "question":
            adapted, after = self._adapt_to_each(policy, splits.adapted)
        else:
            adapted, after = self._adapt_to(policy, splits.adapted, watchers=[w for w in (guard, settling) if w]), []
        _check_tower(policy, tower)
        if adapted.stopped_by not in ("steps", SETTLED, GUARD):
            self.folder.write("stopped.json", {"stopped_by": adapted.stopped_by, "steps": adapted.steps})
            return None
        if guard is not None:
            look = partial(greedy_fall, splits.adapted.questions, guard.start, self.config.guard)
            guard.finish(adapted.steps, partial(look, partial(self.evaluations.greedy, policy)))

        # Save the adapted model first: the evaluation may take long, and may be stopped.
        if self.plan.method.trains and self.config.scope == "dataset":
            self.folder.save_adapted(policy)
        # Evaluate it. With scope=question, each question was answered by the weights adapted to it.
        if self.config.scope == "dataset":
            after = self.evaluations.after(policy, splits, before)
        lmms["after"] = self.evaluations.with_lmms(policy, "after") if self.plan.method.trains else lmms["before"]
        _check_tower(policy, tower)

        # Write the results.
        found = self._write_answers(splits, before, after, adapted.steps)
        watched = guard.record if guard else None, settling.record if settling else None
        findings = Findings(start, before, after, lmms, *found, forecast.saved(expected), *watched)
        summary = summarise(self.plan, splits, policy, adapted, findings, self.totals)
        self.folder.write("summary.json", summary)
        self._clean_up()
        self._announce_results(summary)
        self._report(splits)
        return summary

    def _write_answers(
        self, splits: Splits, before: list[evaluation.Item], after: list[evaluation.Item], steps: int
    ) -> tuple[list[int], dict[str, answer_table.AnswerChanges]]:
        """Write what the votes of the steps were worth, and answers.csv.

        Returns the steps whose rollouts are missing, and how many answers changed, by split.
        """
        missing = self.evaluations.grade_votes(splits.adapted, steps)
        answers = answer_table.answer_rows(splits.questions, before, after)
        self.folder.write_answers(answers)
        return missing, answer_table.changes_by_split(answers)

    def _check_start(self, policy: Policy, splits: Splits) -> str:
        """Hold the start against that of the run to resume and of `evaluation.before`, then claim the folder.

        Returns the fingerprint of summary.json.
        """
        found, source = fingerprint.of_run(self.plan, policy, splits), self.config.evaluation.before
        check_same_start(found)
        start = shared_start(self.plan, policy, found["model"], splits)
        if source is not None:
            fingerprint.check_shared(source, found)
            check_shared_before(source, start)
        if self.resume:
            fingerprint.check_resumed(self.folder.path, found)
        self.folder.claim(self.config, environment(self.config.seed, policy.kernels), found)
        if self.folder.writes:
            resumed_at = self.folder.steps_done if self.resume else None
            for name, tracker in open_trackers(self.folder.path, self.config, resumed_at).items():
                self.listeners.add(name, tracker)
        return start

    def _forecast(self, splits: Splits, before: list[evaluation.Item]) -> forecast.Forecast | None:
        """Forecast, without labels, whether adapting is worth trying, and say so."""
        adapted = [item for item in before if item.split == "adapted"]
        expected = forecast.forecast(splits.adapted.questions, adapted)
        if expected is not None and self.folder.writes and self.plan.method.trains:
            for sentence in forecast.sentences(expected):
                log.info(sentence)
        return expected

    def _finish_report(self, splits: Splits) -> Summary:
        """Write the report of a run that was stopped after its results were written. Returns these results."""
        log.info("%s: the results are written, the report is not; writing it", self.folder.path)
        self.folder.remove_unfinished()
        summary: Summary = files.read_json(self.folder.path / "summary.json")
        self._clean_up()
        self._report(splits)
        return summary

    def _write_card(self) -> None:
        """Write the model card of `adapted/`, once the figures are known."""
        if not self.folder.writes:
            return
        try:
            model_card.write(self.folder.path)
        except OSError:
            raise
        except Exception:
            # The results are all written; a card that fails must not make the run fail.
            log.exception("the run is complete, the model card in %s is not", self.folder.adapted)

    def _clean_up(self) -> None:
        """Delete the finished run's weights to go back to, and its checkpoints unless it was asked for them."""
        self.folder.remove_guard_weights()
        if self.config.checkpoint.every in (0, "auto"):
            self.folder.remove_checkpoints()

    def _load_policy(self) -> Policy:
        cache: CacheConfig = self.config.cache
        if cache.folder is None and distributed.world_size() > 1:
            # One rank encodes an image for all of them.
            cache = cache.model_copy(update={"folder": self.folder.shared_cache})
        config, partition, folder = self.config, None, resolve_model(self.plan.model)
        if partitions(config):
            partition = zero_settings(config.model.dtype == "bfloat16", 0, config.optim, config.engine)
        else:
            warn_of_whole_weights(config, folder)
        policy = Policy.load(folder, config.model, config.seed, cache, partition, config.prompt)
        trainable, frozen = policy.count_parameters()
        log.info("parameters: %s trainable, %s frozen", f"{trainable:,}", f"{frozen:,}")
        return policy

    def _guard(self, policy: Policy, before: list[evaluation.Item]) -> Guard | None:
        """Return the guard of the run, None where it is off, nothing trains, or each question has its own weights."""
        method, config = self.plan.method, self.config
        if not method.trains or not config.optim.steps or config.scope != "dataset" or config.guard.act == "off":
            return None
        alike = method.growth is None and drawn_alike(config.evaluation, config.sampling)
        return Guard(config.guard, policy, before, self.folder, alike)

    def _settling(self, splits: Splits) -> Settling | None:
        """Return what ends the run once its votes have settled, None where it is not asked for or nothing trains."""
        if self.config.guard.settle is None or not self.plan.method.trains or not self.config.optim.steps:
            return None
        if self.folder.writes:
            warn_of_few_repeats(self.config, len(splits.adapted.questions))
        return Settling(self.config.guard, self.folder)

    def _adapt_to(
        self,
        policy: Policy,
        labelled: LabelledSet,
        earlier_steps: int = 0,
        watchers: Sequence[Guard | Settling] = (),
    ) -> Adapted:
        """Adapt the policy to the questions until a watcher ends it.

        `earlier_steps` is how many the run has done for other questions.
        """

        def ended() -> str | None:
            return next((watcher.ends for watcher in watchers if watcher.ends is not None), None)

        sampler = make_sampler(policy, self.config, growth=self.plan.method.grown(self.config.method, policy))
        listen_to_sampler(sampler, self.listeners.sampled)
        asked = min(self.config.optim.questions_per_step, len(labelled.questions))
        most_responses = {"sample": -(-asked // distributed.world_size()) * self.config.sampling.votes.max}
        with noted_signals() as received:
            # A resumed run that a watcher has ended takes no further step; it only loads the weights of its last one.
            already, config = ended(), self.config
            if already is not None:
                config = config.model_copy(
                    update={"optim": config.optim.model_copy(update={"steps": self.folder.steps_done})}
                )
            if self.resume:
                earlier = self.folder.drop_steps_after_checkpoint(config.optim.steps)
                self.totals.add_earlier_steps(earlier)

            def finish(record: StepRecord) -> None:
                self._finish_step(policy, record, earlier_steps)
                for watcher in watchers:
                    watcher.step(record)

            def stops() -> str | None:
                return ended() or (received[-1] if received else None)

            hooks = Hooks(
                on_step=finish,
                on_part=lambda part: self.listeners.part(part, most_responses.get(part)),
                should_stop=stops,
                checkpoints=self.folder.checkpoints if self.config.scope == "dataset" else None,
                resume=self.resume and self.folder.steps_done > 0,
            )
            adapted = adapt(labelled.questions, policy, sampler, self._method(labelled.key), config, hooks)
            if already is not None:
                adapted = replace(adapted, stopped_by=already)
            # A signal during the last checkpoint stops the run too.
            stop = distributed.same_on_all(received[-1] if received else None)
            return adapted if stop is None else replace(adapted, stopped_by=stop)

    def _adapt_to_each(self, policy: Policy, labelled: LabelledSet) -> tuple[Adapted, list[evaluation.Item]]:
        """Adapt to each question from the starting weights, and answer it with the weights adapted to it."""
        start, items, total = policy.weights(), [], Adapted()
        for question in labelled.questions:
            if not policy.can_ask(question, self.config.sampling.max_new_tokens):
                continue
            single = LabelledSet((question,), labelled.key)
            adapted = self._adapt_to(policy, single, earlier_steps=total.steps)
            total = replace(adapted, steps=total.steps + adapted.steps)
            if total.stopped_by != "steps":
                break
            items += self.evaluations.of_question(policy, single)
            policy.restore(start)
        self.folder.write_items("after", items)
        return total, items

    def _method(self, key: AnswerKey) -> Method:
        """Return the method. The oracle gets its reward here: the loop has no parameter for labels."""
        method = self.plan.method
        if method.label_free:
            return method
        log.warning("method %s reads the labels: this run is not label-free", self.config.method.name)
        return replace(method, reward=lambda options: evaluation.oracle_reward(key))

    def _finish_step(self, policy: Policy, record: StepRecord, earlier_steps: int) -> None:
        """Count the step, pass it to the listeners, and evaluate with lmms-eval where one is due."""
        step = finished_step(record, self.all_steps, self.config.reporting.completions, earlier_steps)
        self.totals.add_step(vars(step.report), vars(step.timing))
        self.listeners.step(step)
        self.listeners.advance()
        done, every = record.report.step + 1, self.config.evaluation.lmms_eval_every
        if every and done % every == 0 and done < self.config.optim.steps:
            self.evaluations.with_lmms(policy, f"step_{done:06d}")

    def _announce_adaptation(self, before: list[evaluation.Item], splits: Splits) -> None:
        """Tell the listeners that the steps begin or go on, and the figures of the starting model."""
        done = self.folder.steps_done
        if self.config.scope == "question":
            self.all_steps = self.config.optim.steps * len(splits.adapted.questions)
        if self.plan.method.trains and self.all_steps:
            self.listeners.phase("adapting", self.all_steps, done)
        # A run that goes on from a checkpoint has reported these figures in its first part.
        if not done:
            self.listeners.figures({"evaluation": metrics_by_split(before)}, 0)

    def _announce_results(self, summary: Summary) -> None:
        """Tell the listeners the figures known only after the run, each with the step that it belongs to."""
        if not self.folder.writes:
            return
        steps, held_out, lmms = summary["steps"], summary["held_out"] or {}, summary["lmms_eval"] or {}
        self.listeners.figures({"evaluation": {"adapted": summary["after"], "held_out": held_out.get("after")}}, steps)
        for when, step in (("before", 0), ("after", steps)):
            self.listeners.figures({"lmms_eval": lmms.get(when)}, step)
        accuracy = self.folder.evaluation_file("steps")
        for row in files.read_json_lines(accuracy) if accuracy.is_file() else ():
            self.listeners.figures({"accuracy": {name: x for name, x in row.items() if name != "step"}}, row["step"])

    def _report(self, splits: Splits) -> None:
        """Write report.html, and the images and prompts of the questions that it shows."""
        self._write_card()
        if not self.folder.writes:
            return
        self.listeners.phase("report")
        try:
            # Imported here because matplotlib takes a second.
            from mm_spine.reporting import changes, report

            found = changes.changes_of(self.folder.path)
            changes.save_for_report(self.folder.path, found, splits.questions, self.config.reporting.images)
            report.write_report(self.folder.path)
        except OSError as error:
            if error.errno in files.DISK_FULL:
                raise
            log.warning("the run is complete, its report is not (%s); write it with --resume", error)
        except Exception:
            # The results are all written; a report that fails must not make the run fail.
            log.exception("the run is complete, its report is not; write it with: mm-spine report %s", self.folder.path)


def _check_tower(policy: Policy, checksum: str) -> None:
    """Raise FrozenError unless the vision tower still has the weights of `checksum`."""
    if policy.tower_checksum() != checksum:
        raise FrozenError("the vision tower's checksum changed during the run: its results are void")
