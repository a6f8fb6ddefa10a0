"""`digits` end to end: evaluate, adapt, evaluate; as `mm-spine adapt` does it where its report can be written."""

from __future__ import annotations

import json
import time
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gpu.notes import Setting
from mm_spine.adapt import Hooks, StepRecord, adapt
from mm_spine.benchmarks import digits
from mm_spine.config import RunConfig
from mm_spine.config.layers import parse_overrides, read_yaml
from mm_spine.configs import shipped
from mm_spine.evaluation import evaluate, metrics
from mm_spine.methods.table import configure
from mm_spine.policy.model import Policy
from mm_spine.sampling.registry import make_sampler

TABLE = "`digits`, split `adapt`, shipped configuration without the held-out split"
COMMAND, LIBRARY = "mm-spine adapt, with its report", "the library"
SMALL = (
    *("limit=4", "evaluation.limit=4", "evaluation.samples=2", "optim.steps=1", "optim.questions_per_step=2"),
    *("sampling.votes=4", "sampling.train_rollouts=4"),
)
SPARE = 1.2
"""A further seed is begun if the time left is so many times what the last one took."""


def measure(setting: Setting) -> None:
    """Run seed 0."""
    one_seed(0, setting)


def more_seeds(setting: Setting) -> None:
    """Run seeds from 1 on, while the time is enough for another one; the first of them always."""
    took, seed = 0.0, 1
    while seed == 1 or (took * SPARE < setting.notes.left() and not setting.rehearsal):
        begun = time.monotonic()
        one_seed(seed, setting)
        took, seed = time.monotonic() - begun, seed + 1


def one_seed(seed: int, setting: Setting) -> None:
    """Run one seed and write down its scores and its seconds."""
    small = SMALL if setting.rehearsal else ()
    layer = read_yaml(Path(str(shipped("digits"))))
    config = configure(layer, {"seed": seed}, parse_overrides(("evaluation.held_out=false", *small)))
    # The report reads and writes tables with pyarrow, and draws with matplotlib.
    whole = all(find_spec(name) is not None for name in ("pyarrow", "matplotlib"))
    begun = time.monotonic()
    found = by_command(config) if whole else by_library(config, setting)
    seconds = time.monotonic() - begun
    setting.notes.row(TABLE, seed=seed, run=COMMAND if whole else LIBRARY, **found, seconds=seconds)


def by_command(config: RunConfig) -> dict[str, Any]:
    """Run it as `mm-spine adapt` does; return the scores before and after."""
    from mm_spine.runs.run import run

    with TemporaryDirectory(prefix="gpu_check_digits_") as folder:
        output = Path(folder) / "run"
        summary = run(config, output)
        if summary is None:
            raise RuntimeError("the run was stopped by a signal")
        steps = [json.loads(line) for line in (output / "steps.jsonl").read_text().splitlines()]
        missing = [name for name in ("report.html", "adapted/model.safetensors") if not (output / name).is_file()]
    if missing:
        raise RuntimeError(f"the run ended without {' and '.join(missing)}")
    gaps = {"steps": len(steps), "parity, mean (nats)": max(step["parity_mean"] for step in steps)}
    return {**scores("before", summary["before"]), **scores("after", summary["after"]), **gaps}


def by_library(config: RunConfig, setting: Setting) -> dict[str, Any]:
    """Take the same steps and evaluate before and after, without files."""
    labelled = digits.load("adapt")
    questions = labelled.questions[: config.limit]
    policy = Policy.load(digits.MODEL_DIR, config.model, config.seed)
    sampler = make_sampler(policy, config, config.evaluation)

    def evaluated() -> Any:
        asked = questions[: config.evaluation.limit]
        items = evaluate(asked, labelled.key, sampler, samples=config.evaluation.samples, split="adapted")
        return metrics(items)

    before = evaluated()
    records: list[StepRecord] = []
    adapt(questions, policy, config=config, hooks=Hooks(on_step=records.append))
    sampler.sync(policy.trainable().items())
    after = evaluated()
    for record in records:
        setting.notes.row("Seconds of the steps", seed=config.seed, step=record.report.step, **record.seconds)
    gaps = {"steps": len(records), "parity, mean (nats)": max(record.report.parity_mean for record in records)}
    return {**scores("before", before), **scores("after", after), **gaps}


def scores(when: str, found: Any) -> dict[str, Any]:
    """Return pass@1 and maj@N in per cent."""
    names = {"pass@1": found["pass_at_1"], "maj@N": found["maj_at_n"]}
    return {f"{name} {when}, %": None if value is None else 100 * value for name, value in names.items()}
