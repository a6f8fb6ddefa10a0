"""The output folder of a run: its layout, who may write to it, and what a resumed run may change."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from mm_spine import distributed, evaluation, files
from mm_spine.config import ConfigError, RunConfig, VLLMConfig
from mm_spine.config.layers import expand_layer, read_yaml
from mm_spine.config.versions import upgraded
from mm_spine.evaluation import answer_table
from mm_spine.files import rollout_table
from mm_spine.files.fingerprint import FILE as FINGERPRINT
from mm_spine.methods.table import configure
from mm_spine.policy.model import Policy
from mm_spine.training.checkpoint import UNFINISHED, checkpoints, newest_checkpoint, step_of

log = logging.getLogger(__name__)

ROUNDING_KEYS = {
    *("engine.checkpoint_activations", "sampling.batch_rows", "sampling.kv_cache_gb"),
    *("evaluation.batch_rows", "evaluation.kv_cache_gb", "evaluation.block"),
    *(f"sampling.vllm.{name}" for name in VLLMConfig.model_fields),
}
"""Keys that a resumed run may change, with a warning: they change the order in which sums are rounded."""

LOOP_KEYS = {"threads", "engine.token_budget"}
"""Keys that change rounding too. `training.checkpoint.resume` compares the values in use and warns. A new key needs a
field of its `SavedState`."""

NEUTRAL_KEYS = {
    *("version", "cache.memory_gb", "cache.folder", "cache.disk_gb", "reporting.completions", "reporting.trackers"),
    *("reporting.tracked_completions", "reporting.send_images", "reporting.images"),
    *("checkpoint.every", "checkpoint.keep", "engine.parity_limit", "engine.offload_while_sampling"),
}
"""Keys that a resumed run may change without a warning: no figure depends on them."""


class RunFolder:
    """The files of one run. Only rank 0 writes; on the other ranks the writing methods do nothing."""

    def __init__(self, path: Path, resume: bool = False) -> None:
        self.path, self.resume = path, resume
        self.writes = distributed.rank() == 0
        self.config_file = path / "config.yaml"
        self.steps_file = path / "steps.jsonl"
        self.timings_file = path / "timings.jsonl"
        self.guard_file = path / "guard.jsonl"
        self.guard_weights = path / "guard"
        self.votes_file = path / "votes.jsonl"
        self.rollouts = path / "rollouts"
        self.checkpoints = path / "checkpoints"
        self.adapted = path / "adapted"
        self.report = path / "report.html"
        # Steps in the checkpoint that a resumed run goes on from; `check` sets it.
        self.steps_done = 0
        self._lock: BinaryIO | None = None
        # Image features, while several ranks without a cache folder of the user's work on the run.
        self.shared_cache = path / "image-cache"

    def rollouts_file(self, step: int) -> Path:
        """Return the file of a step's rollouts; `step` counts from 0."""
        return self.rollouts / f"step_{step:06d}.parquet"

    def evaluation_file(self, name: str) -> Path:
        """Return evaluation/NAME.jsonl: "before", "after" or "steps"."""
        return self.path / "evaluation" / f"{name}.jsonl"

    def partial_file(self, name: str) -> Path:
        """Return the file of the blocks of an evaluation that are done: "before" or "after"."""
        return self.path / "evaluation" / f"{name}.partial.jsonl"

    def lmms_eval_file(self, when: str) -> Path:
        """Return the file of lmms-eval's results at "before", "after" or a step."""
        return self.path / "evaluation" / "lmms_eval" / f"{when}.json"

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file."""
        if self.writes:
            files.write_json(self.path / name, content)

    def write_items(self, name: str, items: Sequence[evaluation.Item]) -> None:
        """Write evaluation/NAME.jsonl."""
        if self.writes:
            files.write_json_lines(self.evaluation_file(name), [evaluation.to_json(item) for item in items])

    def write_answers(self, rows: Sequence[answer_table.AnswerRow]) -> None:
        """Write answers.csv."""
        if self.writes and rows:
            files.write_csv(self.path / "answers.csv", [asdict(row) for row in rows])

    def read_items(self, name: str) -> list[evaluation.Item]:
        """Read evaluation/NAME.jsonl."""
        return [evaluation.from_json(row) for row in files.read_json_lines(self.evaluation_file(name))]

    def check(self, config: RunConfig) -> None:
        """Raise ConfigError unless a run may start here, or a resumed one go on here.

        Takes the lock of a run to resume, and finds the checkpoint that it goes on from; writes nothing else.
        """
        if self.resume:
            if config.scope == "question":
                raise ConfigError("scope=question keeps no checkpoints: start again in a new folder")
            if not self.config_file.is_file():
                raise ConfigError(f"{self.path}: no config.yaml there, nothing to resume; start without --resume")
            saved = in_todays_form(read_yaml(self.config_file), self.config_file)
            check_same_config(saved, config.model_dump(mode="json"), self.config_file)
            if self.finished and self.report.is_file():
                raise ConfigError(f"{self.path}: that run is finished; choose another --output")
        elif self.config_file.exists():
            raise ConfigError(f"{self.path}: already holds a run; choose another --output, or --resume to go on")
        check_writable(self.path, "--output ")
        if self.resume:
            # Before the checkpoints are read, because a living run may delete the one that is read.
            self.lock()
            newest = None if self.finished else newest_checkpoint(self.checkpoints, self._uncovered)
            self.steps_done = step_of(newest) if newest else 0
        # Every rank has looked before the first one writes.
        distributed.barrier()

    @property
    def finished(self) -> bool:
        """Whether the results are written."""
        return (self.path / "summary.json").is_file()

    def lock(self) -> None:
        """Take the folder for this process until `unlock`. Raises ConfigError if another process has it.

        The kernel gives the folder back when the process ends, however it ends.
        """
        problem = distributed.same_on_all(self._take_lock() if self.writes else None)
        if problem is not None:
            raise ConfigError(problem)

    def unlock(self) -> None:
        """Give the folder back."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _take_lock(self) -> str | None:
        if self._lock is not None:
            return None
        self.path.mkdir(parents=True, exist_ok=True)
        file = (self.path / "run.lock").open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return f"{self.path}: another process is running this run; wait for it, or stop it first"
        except OSError as error:
            # Some network file systems have no locks.
            log.warning("%s: cannot be locked (%s); start no second process on it", self.path, error.strerror)
        self._lock = file
        return None

    def claim(self, config: RunConfig, environment: Mapping[str, Any], fingerprint: Mapping[str, Any]) -> None:
        """Write what identifies the run, config.yaml last, by which a later start sees that the folder is taken.

        The start of a resumed run is not written again. What a crash has left half-written is removed.
        """
        self.lock()
        taken = not self.resume and self.config_file.exists()
        if distributed.same_on_all(taken):
            raise ConfigError(f"{self.path}: already holds a run; choose another --output, or --resume to go on")
        if not self.writes:
            return
        self.remove_unfinished()
        if not self.resume:
            self.write(FINGERPRINT, fingerprint)
        self.write("environment.json", environment)
        (self.path / "stopped.json").unlink(missing_ok=True)
        files.write_text(self.config_file, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))

    def remove_unfinished(self) -> None:
        """Remove the temporary files and folders that a crash has left. The folder must be locked."""
        if not self.writes:
            return
        for path in self.path.rglob(".*.tmp"):
            path.unlink(missing_ok=True)
        for folder in (self.checkpoints / UNFINISHED, self.path / "adapted.writing"):
            shutil.rmtree(folder, ignore_errors=True)

    def drop_steps_after_checkpoint(self, steps: int) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Delete what was written of steps that a resumed run, which takes `steps` in all, does again.

        Returns the lines of steps.jsonl and timings.jsonl of the steps that remain, in pairs; none on other ranks.
        """
        if not self.writes:
            return []
        done = self.steps_done
        # Those newer than the chosen one are damaged.
        for path in checkpoints(self.checkpoints):
            if step_of(path) > done:
                shutil.rmtree(path)
        for path in (self.steps_file, self.timings_file, self.guard_file, self.votes_file):
            files.JsonLines(path).truncate_after(done - 1)
        for path in self.rollouts.glob("step_*.parquet"):
            if int(path.stem.removeprefix("step_")) >= done:
                path.unlink()
        if done < steps:
            self.evaluation_file("after").unlink(missing_ok=True)
            self.partial_file("after").unlink(missing_ok=True)
        return list(zip(*self._step_lines(), strict=True)) if done else []

    def remove_checkpoints(self) -> None:
        """Delete all checkpoints: the results are written, and nothing goes on from one any more."""
        if self.writes:
            shutil.rmtree(self.checkpoints, ignore_errors=True)

    def remove_guard_weights(self) -> None:
        """Delete the weights that the guard could go back to."""
        if self.writes:
            shutil.rmtree(self.guard_weights, ignore_errors=True)

    def missing_rollouts(self, steps: int) -> list[int]:
        """Return the steps of a run of `steps` whose file in rollouts/ is missing or cannot be read."""
        missing = []
        for step in range(steps):
            try:
                rollout_table.read_rollout_table(self.rollouts_file(step))
            except ValueError:
                missing.append(step)
        return missing

    def _step_lines(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        return files.JsonLines(self.steps_file).steps(), files.JsonLines(self.timings_file).steps()

    def _uncovered(self, checkpoint: Path) -> str | None:
        """Say which log lacks a line of the steps that a checkpoint covers, None if none does."""
        for file, lines in zip((self.steps_file, self.timings_file), self._step_lines(), strict=True):
            if len(lines) < step_of(checkpoint):
                return f"{file.name} is damaged: line {len(lines) + 1} is not that of step {len(lines)}"
        return None

    def save_adapted(self, policy: Policy) -> None:
        """Save the model to adapted/. A crash while writing leaves no half-written adapted/ behind."""
        if not self.writes:
            policy.help_saving()
            return
        with files.atomic_folder(self.adapted, self.path / "adapted.writing") as unfinished:
            policy.save(unfinished)


def check_writable(folder: Path, name: str) -> None:
    """Raise ConfigError unless `folder`, or the nearest existing folder above it, can be written to.

    `name` is what the message puts in front of the path.
    """
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        if not place.is_dir() or not os.access(place, os.W_OK):
            raise PermissionError
        # Some folders, such as /proc, claim to be writable; this leaves nothing behind.
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise ConfigError(f"{name}{folder}: {place} is not a folder that can be written to; choose another") from error


def in_todays_form(saved: Mapping[str, Any], where: Path) -> dict[str, Any]:
    """Return a saved configuration as this version saves it: keys that are newer than the run have their defaults.

    Raises ConfigError naming the file `where` if this version cannot read it.
    """
    tree = upgraded(saved, where)
    try:
        return configure(tree).model_dump(mode="json")
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def check_same_config(saved: Mapping[str, Any], given: Mapping[str, Any], path: Path) -> None:
    """Compare the configuration of a resumed run with the one `saved` at `path`.

    Warns about changed `ROUNDING_KEYS`. Raises ConfigError naming the first changed key that may not change.
    """
    changed = list(changed_keys(saved, given, {*NEUTRAL_KEYS, *LOOP_KEYS}))
    for key, old, new in changed:
        if key not in ROUNDING_KEYS:
            raise ConfigError(f"{path}: {key} was {old!r}, now {new!r}; resume with the same")
    for key, old, new in changed:
        log.warning("resumed with %s=%s, written with %s: results may differ in rounding", key, new, old)


def changed_keys(
    saved: Mapping[str, Any], given: Mapping[str, Any], ignored: Set[str] = NEUTRAL_KEYS | LOOP_KEYS | ROUNDING_KEYS
) -> Iterator[tuple[str, Any, Any]]:
    """Yield (key, saved value, given value) where two configurations differ, except in the `ignored` keys.

    Runs of earlier versions were saved with `prompt: short` for `prompt: {style: short}`, and without the keys that
    are newer; their defaults are what such a run did.
    """
    defaults = dict(_flat(RunConfig().model_dump(mode="json")))
    old, new = dict(_flat(expand_layer(saved))), dict(_flat(expand_layer(given)))
    for key in sorted((old.keys() | new.keys()) - ignored):
        before = old[key] if key in old else defaults.get(key)
        if before != new.get(key):
            yield key, before, new.get(key)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested mappings as ("a.b.c", value)."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
