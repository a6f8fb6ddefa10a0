"""Worker of `methods/test_rows_sampling`: a step of each row on one or several processes.

Started as `sampled_ranks.py FOLDER`, or by torchrun; rank 0 writes `FOLDER/<name>.pt`. Not a test module itself.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import deepspeed  # noqa: F401  # before AdamW is replaced: it derives classes from it
import torch
from ranks import sgd
from small import digit_policy, small_config
from tiny import tiny_questions

from mm_spine import distributed
from mm_spine.adapt import Hooks, adapt
from mm_spine.config import RunConfig

QUESTIONS = tiny_questions(5)
ROWS: Mapping[str, Mapping[str, Any]] = {
    "cure": {"regenerate": {"least_characters": 1}},
    "consistency": {"wordings": ["Look: {question}", "{question} Think."]},
}


def config_of(name: str, *layers: Mapping[str, Any]) -> RunConfig:
    """The configuration of a row with 8 votes and 7 rollouts that train."""
    sampling = {"votes": {"max": 8}, "train_rollouts": 7, **ROWS[name]}
    return small_config({"method": {"name": name}, "sampling": sampling}, *layers)


def one_step(name: str) -> dict[str, Any]:
    """The weights after a step, its report and what was sampled."""
    optim = {"steps": 1, "questions_per_step": 5, "lr": 1.0, "schedule": "constant"}
    policy, records = digit_policy(), []
    with mock.patch("torch.optim.AdamW", sgd):
        adapt(QUESTIONS, policy, config=config_of(name, {"optim": optim}), hooks=Hooks(on_step=records.append))
    rollouts = [
        (r.question_id, r.index, r.token_ids, r.parent, r.fork_at) for g in records[0].groups for r in g.rollouts
    ]
    return {"weights": policy.weights(), "report": vars(records[0].report), "rollouts": rollouts}


def main(folder: Path) -> None:
    """Take the step of every row."""
    torch.set_num_threads(1)
    distributed.initialise()
    for name in ROWS:
        result = one_step(name)
        if distributed.rank() == 0:
            torch.save(result, folder / f"{name}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
