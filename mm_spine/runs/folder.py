"""The output folder of a run: its layout, who may write to it, and what a resumed run may change."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mm_spine import distributed, evaluation, files
from mm_spine.config import ConfigError, RunConfig, VLLMConfig
from mm_spine.config.layers import read_yaml
from mm_spine.policy.model import Policy
from mm_spine.training.checkpoint import newest_checkpoint

log = logging.getLogger(__name__)

ROUNDING_KEYS = {
    *("engine.checkpoint_activations", "sampling.batch_rows", "sampling.kv_cache_gb"),
    *("evaluation.batch_rows", "evaluation.kv_cache_gb"),
    *(f"sampling.vllm.{name}" for name in VLLMConfig.model_fields),
}
"""Keys that a resumed run may change, with a warning: they change the order in which sums are rounded."""

LOOP_KEYS = {"threads", "engine.token_budget"}
"""Keys that change rounding too. The loop warns about them itself: it compares the values in use."""

NEUTRAL_KEYS = {
    *("cache.memory_gb", "cache.folder", "cache.disk_gb", "reporting.completions", "reporting.trackers"),
    *("reporting.tracked_completions", "reporting.send_images", "reporting.images"),
    *("checkpoint.every", "checkpoint.keep", "engine.parity_limit"),
}
"""Keys that a resumed run may change without a warning: no figure depends on them."""


class RunFolder:
    """The files of one run. Only rank 0 writes; on the other ranks the writing methods do nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.writes = distributed.rank() == 0
        self.config_file = path / "config.yaml"
        self.steps_file = path / "steps.jsonl"
        self.timings_file = path / "timings.jsonl"
        self.rollouts = path / "rollouts"
        self.checkpoints = path / "checkpoints"
        self.adapted = path / "adapted"
        # Image features, while several ranks without a cache folder of the user's work on the run.
        self.shared_cache = path / "image-cache"

    def rollouts_file(self, step: int) -> Path:
        """Return the file of a step's rollouts; `step` counts from 0."""
        return self.rollouts / f"step_{step:06d}.parquet"

    def evaluation_file(self, name: str) -> Path:
        """Return evaluation/NAME.jsonl: "before", "after" or "steps"."""
        return self.path / "evaluation" / f"{name}.jsonl"

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

    def read_items(self, name: str) -> list[evaluation.Item]:
        """Read evaluation/NAME.jsonl."""
        return [evaluation.from_json(row) for row in files.read_json_lines(self.evaluation_file(name))]

    def check(self, config: RunConfig, resume: bool) -> None:
        """Raise ConfigError unless a run may start here, or with `resume` go on here. Writes nothing."""
        if resume:
            if config.scope == "question":
                raise ConfigError("scope=question keeps no checkpoints: start again in a new folder")
            if not self.config_file.is_file():
                raise ConfigError(f"{self.path}: no config.yaml there, nothing to resume; start without --resume")
            check_same_config(read_yaml(self.config_file), config.model_dump(mode="json"), self.config_file)
            if (self.path / "summary.json").is_file():
                raise ConfigError(f"{self.path}: that run is finished; choose another --output")
        elif self.config_file.exists():
            raise ConfigError(f"{self.path}: already holds a run; choose another --output, or --resume to go on")
        check_writable(self.path, "--output ")
        # Every rank has looked before the first one writes.
        distributed.barrier()

    def claim(self, config: RunConfig, environment: Mapping[str, Any]) -> None:
        """Write config.yaml, by which a later start sees that the folder is taken, and environment.json."""
        if not self.writes:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        self.config_file.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
        (self.path / "stopped.json").unlink(missing_ok=True)
        self.write("environment.json", environment)

    def steps_done(self) -> int:
        """Return the number of steps in the newest complete checkpoint, 0 without one."""
        newest = newest_checkpoint(self.checkpoints)
        return int(files.read_json(newest / "state.json")["step"]) if newest else 0

    def drop_steps_after_checkpoint(self) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Delete what was written of steps that a resumed run does again.

        Returns the lines of steps.jsonl and timings.jsonl of the steps that remain, in pairs; none on other ranks.
        """
        if not self.writes:
            return []
        done = self.steps_done()
        for path in (self.steps_file, self.timings_file):
            files.JsonLines(path).truncate_after(done - 1)
        for path in self.rollouts.glob("step_*.parquet"):
            if int(path.stem.removeprefix("step_")) >= done:
                path.unlink()
        if done == 0:
            return []
        return list(zip(files.read_json_lines(self.steps_file), files.read_json_lines(self.timings_file), strict=True))

    def save_adapted(self, policy: Policy) -> None:
        """Save the model to adapted/. A crash while writing leaves no half-written adapted/ behind."""
        if not self.writes:
            return
        unfinished = self.path / "adapted.writing"
        policy.save(unfinished)
        shutil.rmtree(self.adapted, ignore_errors=True)
        unfinished.rename(self.adapted)


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


def check_same_config(saved: Mapping[str, Any], given: Mapping[str, Any], path: Path) -> None:
    """Compare the configuration of a resumed run with the one `saved` at `path`.

    Warns about changed `ROUNDING_KEYS`. Raises ConfigError naming the first changed key that may not change.
    """
    old, new = dict(_flat(saved)), dict(_flat(given))
    compared = (old.keys() | new.keys()) - NEUTRAL_KEYS - LOOP_KEYS
    changed = [key for key in sorted(compared) if old.get(key) != new.get(key)]
    for key in changed:
        if key not in ROUNDING_KEYS:
            raise ConfigError(f"{path}: {key} was {old.get(key)!r}, now {new.get(key)!r}; resume with the same")
    for key in changed:
        log.warning(
            "resumed with %s=%s, written with %s: results may differ in rounding", key, new.get(key), old.get(key)
        )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested mappings as ("a.b.c", value)."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
