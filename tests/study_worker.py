"""What a worker of the study does in tests/scripts/test_study.py. Spawned processes import it by this name."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any


def act(task: Any, output: Path) -> str | None:
    """Write the task's name to `output`/log, then do what the name says. Returns why the task failed, None if not."""
    with (output / "log").open("a") as file:
        file.write(f"{task.name}\n")
    if task.name == "die":
        os._exit(3)
    if task.name == "stop":
        os.kill(os.getppid(), signal.SIGINT)
        time.sleep(300)
    return "broken" if task.name == "fail" else None
