"""What the ranks of a run must share, checked before a model loads: on several hosts, folders may be their own."""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from mm_spine import distributed
from mm_spine.config import ConfigError, RunConfig
from mm_spine.files import fingerprint

log = logging.getLogger(__name__)

LARGE = 10**9
"""Bytes of weights from which whole copies beside divided ones are worth a warning."""

VISIBLE_SECONDS = 10.0
"""How long another host may take to see a file that rank 0 has written: network file systems cache what they list."""


def check_shared_folders(output: Path, model: str) -> None:
    """Raise ConfigError on every rank unless all of them see rank 0's folder `output`, and the folder `model`.

    `model` may be a hub id: it counts as a folder if rank 0 finds one of that name. A single process checks nothing.
    """
    if distributed.world_size() == 1:
        return
    name, place = distributed.same_on_all((f".{uuid4().hex}.tmp", output.absolute()))
    # Each rank looks where it would write itself: a relative path leads elsewhere from another working folder.
    token, made = output.absolute() / name, False
    try:
        problem = None
        if distributed.rank() == 0:
            made, problem = _write(token)
        _raise_first(problem)
        _raise_first(None if _is_visible(token) else _not_shared(token.parent, place))
    finally:
        # Every rank has looked, or has the error of one that cannot.
        if distributed.rank() == 0:
            with suppress(OSError):
                token.unlink(missing_ok=True)
            if made:
                # A refused run leaves nothing behind.
                with suppress(OSError):
                    token.parent.rmdir()
    is_folder = distributed.same_on_all(Path(model).exists())
    missing = is_folder and not Path(model).exists()
    _raise_first(f"model={model}: not there{_here()}; copy it to the same path on every host" if missing else None)


def warn_of_whole_weights(config: RunConfig, folder: Path) -> None:
    """Warn on rank 0 if ZeRO-3 divides the weights of a large model, and each rank keeps them whole all the same."""
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if config.engine.zero_stage == 3 and distributed.world_size() > 1 and size > LARGE and distributed.rank() == 0:
        log.warning(
            "engine.zero_stage=3: each of %d ranks also keeps the whole weights, %.1f GB, to sample from; for a model "
            "that does not fit, set engine.keep_whole=false and sampling.backend=vllm",
            *(distributed.world_size(), size / 1e9),
        )


def check_same_start(found: Mapping[str, Any]) -> None:
    """Raise ConfigError on every rank if one started from another model, other questions or another configuration.

    `found` is this rank's fingerprint of the run (`runs.fingerprint.of_run`).
    """
    same = {name: part for name, part in found.items() if name != "code"}
    digests = distributed.gather([fingerprint.digest(json.dumps(same, sort_keys=True))])
    if len(set(digests)) == 1:
        return
    first = distributed.same_on_all(same)
    problem = None
    if same != first:
        what = next(fingerprint.all_differences(first, same), "its configuration differs")
        problem = f"{what}{_here()}, compared with rank 0; give every host the same model, data and configuration"
    _raise_first(problem)


@contextmanager
def failing_together() -> Iterator[None]:
    """Raise an error of the block that a user can mend on every rank, so that none waits for one that has stopped."""
    if distributed.world_size() == 1:
        yield
        return
    error: ValueError | OSError | None = None
    try:
        yield
    except (ValueError, OSError) as raised:
        error = raised
    problems = distributed.gather([None if error is None else f"{error}{_here()}"])
    if error is not None:
        raise error
    _raise_of(problems)


def _write(token: Path) -> tuple[bool, str | None]:
    """Write `token`. Returns whether its folder was made for it, and the problem if it cannot be written."""
    made = not token.parent.exists()
    try:
        token.parent.mkdir(parents=True, exist_ok=True)
        token.touch()
    except OSError as error:
        return False, f"--output {token.parent}: cannot be written to ({error.strerror}); choose another"
    return made, None


def _is_visible(token: Path) -> bool:
    ends = time.monotonic() + VISIBLE_SECONDS
    while not token.exists():
        if time.monotonic() > ends:
            return False
        # A new listing of the folder refreshes what the host remembers of it.
        with suppress(OSError):
            os.listdir(token.parent)
        time.sleep(0.2)
    return True


def _not_shared(folder: Path, first: Path) -> str:
    return (
        f"--output {folder}{_here()} is not the folder {first} of rank 0; all hosts write there, so give an absolute "
        "path of a folder that every host shares"
    )


def _here() -> str:
    return f" on host {socket.gethostname()} (rank {distributed.rank()})"


def _raise_first(problem: str | None) -> None:
    """Raise ConfigError with the first rank's problem on every rank."""
    _raise_of(distributed.gather([problem]))


def _raise_of(problems: Sequence[str | None]) -> None:
    found = [problem for problem in problems if problem is not None]
    if found:
        raise ConfigError(found[0])
