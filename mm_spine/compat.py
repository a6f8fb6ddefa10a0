"""Prepare the process before torch, torchvision or vLLM are imported, and look up what is installed."""

from __future__ import annotations

import importlib
import logging
import os
import shlex
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from types import MappingProxyType

_OPERATORS = ("nms", "qnms")
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
# The schemas of a torch.library.Library exist only as long as the object does.
_libraries: list[object] = []

QUIET = MappingProxyType(
    {
        # Two OpenMP threads spinning at a barrier under contention ran 150 times slower than one.
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "0",
        "TOKENIZERS_PARALLELISM": "false",
        # Deterministic algorithms need it on CUDA.
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        # vLLM's workers log the addresses that they listen on.
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "GRADIO_ANALYTICS_ENABLED": "False",
    }
)
"""Environment variables that turn telemetry, notices and spinning threads off, unless the user has set them."""


def heal_torchvision() -> bool:
    """Import torchvision; where it was built for CUDA and torch for the CPU, define the operators that it misses.

    Returns whether that was needed. Raises RuntimeError where the import fails for another reason. Nothing happens
    where torchvision is not installed; `mm-spine doctor` reports that.
    """
    # Such a torchvision fails with "operator torchvision::nms does not exist", and so do transformers, qwen-vl-utils,
    # vLLM and lmms-eval, which import it. Resizing and the image processors need no native operator, so it is enough
    # to define the schemas of the missing ones.
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
    """Remove a package whose import failed from `sys.modules`, so that it can be imported again."""
    for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
        del sys.modules[name]


def _define_schemas() -> None:
    """Define the operators of the missing native library, without implementations."""
    from torch.library import Library

    library = Library("torchvision", "DEF")
    for operator in _OPERATORS:
        library.define(operator + _SCHEMA)
    _libraries.append(library)


def pip_install(what: str) -> str:
    """Return the command that installs `what`: at the pinned versions if this package runs from a checkout."""
    pins = Path(__file__).resolve().parents[1] / "constraints.txt"
    if not pins.is_file():
        return f"pip install {what}"
    here = os.path.exists("constraints.txt") and pins.samefile("constraints.txt")
    return f"pip install -c {'constraints.txt' if here else shlex.quote(str(pins))} {what}"


def install_command(extra: str) -> str:
    """Return the command that installs an extra of mm-spine, for the messages that one is missing."""
    return pip_install(f'"mm-spine[{extra}]"')


def version_of(*packages: str) -> str | None:
    """Return the version of the first of these packages that is installed, or None."""
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
    """Set the variables of `QUIET` for this process and its children. Call before importing torch, vLLM or gradio."""
    # In a notebook without ipywidgets, tqdm's bars are drawn as text, and it warns of that.
    warnings.filterwarnings("ignore", "IProgress not found")
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)


def quiet_logs() -> None:
    """Silence progress bars and notices of other libraries, which would drown the lines of a command; errors show."""
    # Environment variables suffice before transformers is imported, and importing it takes seconds. Its progress bars
    # obey the variable of the hub.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # Both libraries read the variables only on import, and transformers then takes the hub's state for its bars.
    if "huggingface_hub" in sys.modules:
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()
    if "transformers" in sys.modules:
        from transformers.utils.logging import disable_progress_bar, set_verbosity_error

        disable_progress_bar()
        set_verbosity_error()
    for noisy in ("DeepSpeed", "httpx", "httpx2", "accelerate"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
