"""Run lmms-eval within a run (`evaluation.lmms_eval`), on the policy in memory, without any effect on the run."""

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

# What is kept of lmms-eval's results besides `samples`, and of a sample besides its id and scores.
_RESULT_FIELDS = ("results", "groups", "versions", "n-shot", "n-samples", "higher_is_better", "lmms_eval_version")
_SAMPLE_FIELDS = ("doc_id", "target", "resps", "filtered_resps")


def check(config: RunConfig) -> None:
    """Check, before a model loads, that the tasks of the configuration can be evaluated. Raises ConfigError."""
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
    """Raise ConfigError where lmms-eval is not installed; `what` is the setting or command that needs it."""
    if find_spec("lmms_eval") is None:
        raise ConfigError(f"{what}: lmms-eval is not installed; {install_command('eval')}")


def _closest(task: str, known: Sequence[str]) -> str:
    # lmms-eval has too many tasks to name them all, so drop the list of `nearest`.
    return nearest(task, known).partition("valid:")[0] + "see `lmms-eval --tasks list`, or set lmms_eval_tasks"


def _task_manager(settings: EvaluationConfig) -> Any:
    """Return lmms-eval's index of our tasks, the user's, and, if `settings` name one, its own."""
    from lmms_eval.tasks import TaskManager

    folders = [str(SHIPPED), *([str(settings.lmms_eval_tasks)] if settings.lmms_eval_tasks else [])]
    found = TaskManager("ERROR", include_path=folders, include_defaults=False, model_name="mm_spine")
    # lmms-eval's own tasks are a thousand files, which take seconds to read.
    if set(settings.lmms_eval) <= set(found.all_tasks):
        return found
    return TaskManager("ERROR", include_path=folders, model_name="mm_spine")


def evaluate(policy: Policy, config: RunConfig, strict: bool = True) -> dict[str, Any]:
    """Evaluate `policy` on the tasks of `config.evaluation.lmms_eval`; return lmms-eval's results as plain JSON.

    Responses are drawn as the tasks say. `samples` has one entry for each item. Raises ConfigError where a task fails;
    with `strict` false returns {"error": why} in its place, so that a run that has trained is not lost.
    """
    try:
        with unchanged():
            return _results(_simple_evaluate(policy, config))
    except Exception as error:
        # lmms-eval retries and then raises an error that says only so. The cause is in its last attempt.
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
        # The default would start an Accelerator in this process.
        distributed_executor_backend="torchrun",
        process_docs_parallel=1,
    )
    return found


def _results(found: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: found[name] for name in _RESULT_FIELDS if name in found}
    samples = {task: [_sample(row) for row in rows] for task, rows in found["samples"].items()}
    plain: dict[str, Any] = _plain({**kept, "samples": samples})
    return plain


def figures(results: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return task -> metric -> value, without filters and standard errors, for summary.json."""
    return {
        task: {name.partition(",")[0]: x for name, x in row.items() if isinstance(x, float) and "_stderr" not in name}
        for task, row in results.get("results", {}).items()
    }


def _sample(row: Mapping[str, Any]) -> dict[str, Any]:
    """Keep the id of an item, its responses and its scores. The rest of lmms-eval's row repeats the task."""
    known = {"doc", "arguments", "input_media", "token_counts", "doc_hash", *_SAMPLE_FIELDS}
    scores = {name: x for name, x in row.items() if name not in known}
    return {"id": row["doc"].get("id"), **{name: row[name] for name in _SAMPLE_FIELDS}, **scores}


def _plain(value: Any) -> Any:
    """Convert a value to what JSON can hold: infinite numbers and NaN to None, unknown types to their text."""
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
    """Restore random states, warning filters, environment, logging and torch's timeout afterwards; discard prints."""
    # On import lmms-eval silences all warnings and sets torch's timeout, and its tasks may draw numbers and print.
    python_state, numpy_state = random.getstate(), np.random.get_state()
    variables = dict(os.environ)
    timeout = distributed_c10d.default_pg_timeout
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    nowhere = io.StringIO()
    try:
        with torch.random.fork_rng(), warnings.catch_warnings(), redirect_stdout(nowhere), redirect_stderr(nowhere):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        for name in os.environ.keys() - variables.keys():
            del os.environ[name]
        os.environ.update(variables)
        distributed_c10d.default_pg_timeout = timeout
        root.setLevel(level)
        root.handlers[:] = handlers
