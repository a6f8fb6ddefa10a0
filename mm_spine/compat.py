"""What must happen before torch, torchvision or vLLM load, in this process and in the ones that it starts."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from types import MappingProxyType

_OPERATORS = ("nms", "qnms")
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_libraries: list[object] = []  # a torch.library.Library lives as long as its reference

QUIET = MappingProxyType(
    {
        # Two OpenMP threads spinning at a barrier under contention ran 150 times slower than one.
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "0",
        "TOKENIZERS_PARALLELISM": "false",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # what deterministic algorithms ask for on CUDA
        "TORCH_CPP_LOG_LEVEL": "ERROR",  # or vLLM's workers say where they are bound
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "GRADIO_ANALYTICS_ENABLED": "False",
    }
)
"""Environment variables set unless the user has set them: no telemetry, no spinning threads."""


def heal_torchvision() -> bool:
    """Import torchvision, defining the operator schemas that a CPU torch lacks; return whether that was needed.

    A torchvision built for CUDA beside a CPU torch fails on import with "operator torchvision::nms does
    not exist", and transformers, qwen-vl-utils, vLLM and lmms-eval with it. Resizing and the image
    processors need no native operator, so the schemas alone are enough. A healthy install is left alone,
    a missing one is left to `mm-spine doctor`.

    Raises:
        RuntimeError: torchvision fails for another reason.
    """
    try:
        importlib.import_module("torchvision")
    except ImportError:
        return False
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        _forget("torchvision")
        _define_schemas()
        importlib.import_module("torchvision")
    return bool(_libraries)


def _forget(package: str) -> None:
    """Drop a half-imported package, so that it can be imported again."""
    for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
        del sys.modules[name]


def _define_schemas() -> None:
    """Define what the missing native library would have; the names stay unimplemented."""
    from torch.library import Library

    library = Library("torchvision", "DEF")
    for operator in _OPERATORS:
        library.define(operator + _SCHEMA)
    _libraries.append(library)


def install_command(extra: str) -> str:
    """What installs an extra of mm-spine with the versions that work together: the end of every message that one is
    missing."""
    return f'pip install -c constraints.txt "mm-spine[{extra}]"'


def version_of(*packages: str) -> str | None:
    """Return the version of the first of these packages that is installed; None where none is."""
    for package in packages:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return None


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables while the block runs, and restore what they were before."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def quiet_environment() -> None:
    """Set what `QUIET` names, for this process and its children. Call before torch, vLLM or gradio load."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)


def quiet_logs() -> None:
    """Silence progress bars and notices of other libraries, which would drown the lines of a command; errors show.

    Call before transformers is imported, so that this needs no import of it.
    """
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers' own bars obey it too
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    for noisy in ("DeepSpeed", "httpx", "accelerate"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
