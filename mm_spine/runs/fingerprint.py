"""What a run started from: written to its folder, and held against on resuming and for a shared "before"."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mm_spine.compat import version_of
from mm_spine.config import ConfigError, plugins
from mm_spine.files import fingerprint
from mm_spine.policy.model import Policy, checksum
from mm_spine.runs.folder import changed_keys, in_todays_form
from mm_spine.runs.machine import commit
from mm_spine.runs.plan import Plan, Splits

log = logging.getLogger(__name__)


def of_run(plan: Plan, policy: Policy, splits: Splits) -> dict[str, Any]:
    """Return the content of fingerprint.json; `policy` must have its starting weights."""
    sets = {"adapted": splits.adapted, "held_out": splits.held_out}
    loaded = {name: labelled for name, labelled in sets.items() if labelled is not None}
    golds = {
        name: [[question.id, list(labelled.key.get(question.id, ()))] for question in labelled.questions]
        for name, labelled in loaded.items()
    }
    method = plan.method
    files = {} if method.reads is None else {"files": fingerprint.of_folders(method.reads(plan.config.method))}
    return {
        "model": starting_weights(policy),
        "questions": {name: fingerprint.of_questions(labelled.questions) for name, labelled in loaded.items()},
        "answers": {name: fingerprint.digest(json.dumps(pairs)) for name, pairs in golds.items()},
        "config": plan.config.model_dump(mode="json"),
        "code": {"version": version_of("mm-spine"), "commit": commit()},
        "plugins": plugins.digests(),
        **files,
    }


def starting_weights(policy: Policy) -> str:
    """Return the SHA-256 of the model's weights, LoRA's adapters left out: they are new in each run."""
    weights = policy.model.state_dict(keep_vars=True)
    return checksum(
        (name.replace(".base_layer.", "."), weight) for name, weight in weights.items() if ".lora_" not in name
    )


def check_resumed(run: Path, current: Mapping[str, Any]) -> None:
    """Raise ConfigError naming what differs from the start of the run that is resumed. Other code is only warned of."""
    started = fingerprint.read(run)
    if started is None:
        log.warning(
            "%s: no %s (an older version wrote the run): whether its data and model are still the same was not checked",
            run,
            fingerprint.FILE,
        )
        return
    problems = list(fingerprint.all_differences(started, current))
    saved = in_todays_form(started["config"], run / fingerprint.FILE)
    for key, old, new in changed_keys(saved, current["config"]):
        problems.append(f"{key} was {old!r}, now {new!r}")
    if problems:
        raise ConfigError(f"{run}: {problems[0]} since the run started; restore it, or start again in a new folder")
    if started["code"] != current["code"]:
        log.warning(
            "resumed with other code (%s), written with %s: results may differ",
            fingerprint.code_words(current),
            fingerprint.code_words(started),
        )


def check_shared(source: Path, current: Mapping[str, Any]) -> None:
    """Raise ConfigError naming what differs if the run in `source`, whose "before" is to be used, started elsewhere."""
    started = fingerprint.read(source)
    if started is None:
        log.warning(
            "evaluation.before=%s: no %s there (an older version wrote the run): only the questions' ids, the model "
            "and the evaluation settings were compared",
            source,
            fingerprint.FILE,
        )
        return
    if problem := next(fingerprint.differences(started, current), None):
        raise ConfigError(f"evaluation.before={source}: {problem} since that run; leave the key out to evaluate again")
    # A plugin that only adds a method has no part in that evaluation, so that this is no error.
    for problem in fingerprint.plugin_differences(started, current):
        log.warning("evaluation.before=%s: %s since that run", source, problem)
    if started["code"] != current["code"]:
        log.warning(
            "evaluation.before=%s: evaluated by other code (%s), now %s",
            source,
            fingerprint.code_words(started),
            fingerprint.code_words(current),
        )
