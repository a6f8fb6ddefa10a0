"""`evaluation.lmms_eval` of a run: lmms-eval in process, around the live policy, and without a trace in the run."""

from __future__ import annotations

import io
import logging
import math
import os
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch.distributed import distributed_c10d

from mm_spine import distributed
from mm_spine.compat import install_command
from mm_spine.config import ConfigError, EvaluationConfig, RunConfig
from mm_spine.integrations.lmms_tasks import SHIPPED
from mm_spine.policy.model import Policy
from mm_spine.words import nearest

log = logging.getLogger(__name__)

KEPT = ("results", "groups", "versions", "n-shot", "n-samples", "higher_is_better", "lmms_eval_version")
"""What of lmms-eval's results goes to the run's folder, beside `samples`."""

OF_A_SAMPLE = ("doc_id", "target", "resps", "filtered_resps")


def check(config: RunConfig) -> None:
    """Raise ConfigError, before a model loads, where the tasks that the run asks for cannot be evaluated."""
    settings = config.evaluation
    if not settings.lmms_eval:
        return
    check_installed("evaluation.lmms_eval")
    if distributed.launched_processes() > 1 or config.scope == "question":
        raise ConfigError(
            "evaluation.lmms_eval runs on one process and needs scope=dataset: leave it out, and evaluate the adapted "
            "model afterwards with scripts/eval_lmms.sh"
        )
    if settings.lmms_eval_tasks is not None and not settings.lmms_eval_tasks.is_dir():
        raise ConfigError(f"evaluation.lmms_eval_tasks={settings.lmms_eval_tasks}: no such folder of tasks")
    with unchanged():
        known = _task_manager(settings).all_tasks
    for task in settings.lmms_eval:
        if task not in known:
            raise ConfigError(f"evaluation.lmms_eval: no task {task!r}; {_closest(task, known)}")


def check_installed(what: str) -> None:
    """Raise ConfigError, saying for `what` it is needed, where lmms-eval is not installed."""
    if find_spec("lmms_eval") is None:
        raise ConfigError(f"{what}: lmms-eval is not installed; {install_command('eval')}")


def _closest(task: str, known: Sequence[str]) -> str:
    """lmms-eval has too many tasks to name them all."""
    return nearest(task, known).partition("valid:")[0] + "see `lmms-eval --tasks list`, or set lmms_eval_tasks"


def _task_manager(settings: EvaluationConfig) -> Any:
    """Ours, the user's, and lmms-eval's own only if one of them is asked for: their thousand files take seconds."""
    from lmms_eval.tasks import TaskManager

    folders = [str(SHIPPED), *([str(settings.lmms_eval_tasks)] if settings.lmms_eval_tasks else [])]
    found = TaskManager("ERROR", include_path=folders, include_defaults=False, model_name="mm_spine")
    if set(settings.lmms_eval) <= set(found.all_tasks):
        return found
    return TaskManager("ERROR", include_path=folders, model_name="mm_spine")


def evaluate(policy: Policy, config: RunConfig, strict: bool = True) -> dict[str, Any]:
    """lmms-eval's results on the tasks of `config.evaluation.lmms_eval`, with one entry of `samples` per item.

    Responses are drawn by a sampler of `policy` as it stands, as the tasks say. Nothing else of the process changes.
    A task that fails is a ConfigError, or {"error": why} unless `strict`: what was trained must not be lost by it.
    """
    try:
        with unchanged():
            return _results(_simple_evaluate(policy, config))
    except Exception as error:
        # lmms-eval tries again and again, and then says no more than that it did.
        attempt = getattr(error, "last_attempt", None)
        first = error if attempt is None else attempt.exception()
        why = f"evaluation.lmms_eval: {type(first).__name__}: {first}"
        if strict:
            raise ConfigError(why) from error
        log.warning("%s", why)
        return {"error": why}


def _simple_evaluate(policy: Policy, config: RunConfig) -> dict[str, Any]:
    from lmms_eval.evaluator import simple_evaluate

    from mm_spine.integrations.lmms_eval import MMSpine

    found: dict[str, Any] = simple_evaluate(
        model=MMSpine(policy, config),
        tasks=list(config.evaluation.lmms_eval),
        limit=config.evaluation.lmms_eval_limit,
        task_manager=_task_manager(config.evaluation),
        random_seed=None,
        numpy_random_seed=None,
        torch_random_seed=None,
        distributed_executor_backend="torchrun",  # the other one starts an Accelerator in this process
        process_docs_parallel=1,
    )
    return found


def _results(found: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: found[name] for name in KEPT if name in found}
    samples = {task: [_sample(row) for row in rows] for task, rows in found["samples"].items()}
    plain: dict[str, Any] = _plain({**kept, "samples": samples})
    return plain


def figures(results: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Task -> metric -> value, as a line of summary.json; filters and standard errors are in the full results."""
    return {
        task: {name.partition(",")[0]: x for name, x in row.items() if isinstance(x, float) and "_stderr" not in name}
        for task, row in results.get("results", {}).items()
    }


def _sample(row: Mapping[str, Any]) -> dict[str, Any]:
    """An item's id where the task has ids, what was said, and its scores: lmms-eval's row has copies of the rest."""
    known = {"doc", "arguments", "input_media", "token_counts", "doc_hash", *OF_A_SAMPLE}
    scores = {name: x for name, x in row.items() if name not in known}
    return {"id": row["doc"].get("id"), **{name: row[name] for name in OF_A_SAMPLE}, **scores}


def _plain(value: Any) -> Any:
    """As JSON holds it: numbers finite or None, everything without a form of its own as its text."""
    if isinstance(value, Mapping):
        return {str(name): _plain(x) for name, x in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(x) for x in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


@contextmanager
def unchanged() -> Iterator[None]:
    """Random states, warning filters, variables, logging and timeouts are afterwards as before; prints go nowhere.

    lmms-eval silences all warnings and sets torch's timeout when it is imported, and its tasks may draw and print.
    """
    states, variables = (random.getstate(), np.random.get_state()), dict(os.environ)
    timeout, root = distributed_c10d.default_pg_timeout, logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    nowhere = io.StringIO()
    try:
        with torch.random.fork_rng(), warnings.catch_warnings(), redirect_stdout(nowhere), redirect_stderr(nowhere):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        for name in os.environ.keys() - variables.keys():
            del os.environ[name]
        os.environ.update(variables)
        distributed_c10d.default_pg_timeout = timeout
        root.setLevel(level)
        root.handlers[:] = handlers
