"""Requests to lmms-eval, and configurations of runs that ask for it."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from small import small_config

from mm_spine.integrations import lmms_tasks

needed = pytest.mark.skipif(find_spec("lmms_eval") is None, reason='lmms-eval is not installed: "mm-spine[eval]"')
DIGITS = "mm_spine_digits_adapt"
LAUNCHERS_OWN = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}


def asked(folder: Path, tasks: Path, **settings: Any) -> Any:
    """A small run's configuration that asks lmms-eval for the folder's questions too."""
    names = lmms_tasks.write_tasks(str(folder), tasks, max_new_tokens=6)
    return small_config(
        {"benchmark": str(folder), "evaluation": {"lmms_eval": names, "lmms_eval_tasks": str(tasks), **settings}}
    )


def requests_of(docs: Sequence[Any], messages: Any, gen_kwargs: dict[str, Any] | None = None) -> list[Any]:
    """What lmms-eval hands to a chat model for the first `len(docs)` rows of the task "t"."""
    return [SimpleNamespace(args=("", messages, gen_kwargs or {}, i, "t", "test")) for i in range(len(docs))]


def user(*parts: tuple[str, Any]) -> list[dict[str, Any]]:
    content = [{"type": kind, "text" if kind == "text" else "url": value} for kind, value in parts]
    return [{"role": "user", "content": content}]


def texts_of(results: dict[str, Any], task: str) -> list[str]:
    return [row["resps"][0][0] for row in results["samples"][task]]
