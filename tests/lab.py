"""Small runs in their folders, for the tests of `runs`: a model, its questions, what a run left behind."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from small import small_config, write_data, write_model

from mm_spine import files
from mm_spine.files import rollout_table
from mm_spine.runs.listeners.listener import Listener, Step
from mm_spine.runs.run import run

VARIANTS: dict[str, Mapping[str, Any]] = {
    "spine": {
        "method": {"kl": "exact", "kl_weight": 0.1, "band_anchor": "initial"},
        "optim": {"steps": 4, "epochs": 2, "questions_per_step": 4},
    },
    "lora": {"method": "ttrl", "model": {"train": "lora"}, "optim": {"steps": 4, "lr": 0.01, "weight_decay": 0.1}},
    "zero2": {"method": "ttrl", "engine": {"zero_stage": 2}, "optim": {"steps": 4}},
    "zero3": {"method": "spine-v2", "engine": {"zero_stage": 3}, "optim": {"steps": 4}},
}


class Lab:
    """A model, its questions, and finished runs by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = write_model(folder / "model")
        self.data = write_data(folder / "data")

    def config(self, *layers: Mapping[str, Any], data: Path | None = None) -> Any:
        """A small run on this model and these questions."""
        base = {"benchmark": str(data or self.data), "model": {"path": str(self.model)}, "method": {"kl_weight": 0.1}}
        return small_config(base, *layers)

    def run(self, name: str, *layers: Mapping[str, Any], data: Path | None = None, **options: Any) -> Path:
        """The folder of that run, which is started once."""
        output = self.folder / "runs" / name
        if not output.exists():
            assert run(self.config(*layers, data=data), output, **options) is not None
        return output


class Interrupting(Listener):
    """Acts right after the step of that number was written, before its checkpoint."""

    def __init__(self, number: int, act: Callable[[], None]) -> None:
        self.number, self.act = number, act

    def step(self, step: Step) -> None:
        if step.report.step == self.number:
            self.act()


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def traces(output: Path) -> dict[str, bytes]:
    """The bytes of what training left: step lines, rollouts, weights."""
    paths = [output / "steps.jsonl", *sorted(output.glob("rollouts/*")), *sorted(output.glob("adapted/*.safetensors"))]
    return {str(path.relative_to(output)): path.read_bytes() for path in paths}


def assert_same(a: Path, b: Path) -> None:
    """Equal traces, with the name of the first that differs."""
    left, right = traces(a), traces(b)
    assert left.keys() == right.keys()
    assert [name for name in left if left[name] != right[name]] == []


def steps_of(output: Path) -> list[dict[str, Any]]:
    return files.read_json_lines(output / "steps.jsonl")


def summary_of(output: Path) -> dict[str, Any]:
    return json.loads((output / "summary.json").read_text())


def table(output: Path, step: int) -> list[dict[str, Any]]:
    return rollout_table.read_rollout_table(output / "rollouts" / f"step_{step:06d}.parquet").to_pylist()


def never_load(*args: Any, **kwargs: Any) -> None:
    raise AssertionError("the model was loaded before the check")
