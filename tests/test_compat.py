"""A CUDA torchvision beside a CPU torch, and the environment variables that the package sets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mm_spine import compat

BROKEN_TORCHVISION = """
import torch
import torchvision.transforms
if not hasattr(torch.ops.torchvision, "nms"):
    raise RuntimeError("operator torchvision::nms does not exist")
@torch.library.register_fake("torchvision::nms")
def nms(dets, scores, iou_threshold):
    return dets
HEALED = torch.ops.torchvision.nms is not None and torch.ops.torchvision.qnms is not None
"""


# The module by itself: the whole package would import transformers, which needs a real torchvision.
LOAD = f"""
import importlib.util
spec = importlib.util.spec_from_file_location("compat", {compat.__file__!r})
compat = importlib.util.module_from_spec(spec)
spec.loader.exec_module(compat)
"""


def fake_torchvision(folder: Path, body: str) -> dict[str, str]:
    """An environment whose torchvision is this module; it comes before the installed one."""
    package = folder / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(body)
    (package / "transforms.py").write_text("")
    return {**os.environ, "PYTHONPATH": str(folder)}


def python(code: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)


def test_a_cuda_torchvision_on_a_cpu_torch_is_healed(tmp_path: Path) -> None:
    environment = fake_torchvision(tmp_path, BROKEN_TORCHVISION)
    code = (
        "healed = compat.heal_torchvision(); import torchvision;"
        "print(healed, torchvision.HEALED, compat.heal_torchvision(), hasattr(torchvision, 'transforms'))"
    )
    done = python(LOAD + code, environment)
    assert done.stdout.split() == ["True"] * 4, done.stderr


@pytest.mark.slow
def test_a_healthy_torchvision_is_left_alone(tmp_path: Path) -> None:
    environment = fake_torchvision(tmp_path, "from torchvision import transforms")
    code = "import torch; print(compat.heal_torchvision(), hasattr(torch.ops.torchvision, 'nms'))"
    done = python(LOAD + code, environment)
    assert done.stdout.split() == ["False", "False"], done.stderr


def test_other_faults_of_torchvision_are_not_hidden(tmp_path: Path) -> None:
    environment = fake_torchvision(tmp_path, "raise RuntimeError('out of date')")
    done = python(LOAD + "compat.heal_torchvision()", environment)
    assert done.returncode != 0
    assert "RuntimeError: out of date" in done.stderr


def test_a_missing_torchvision_is_left_to_doctor(tmp_path: Path) -> None:
    environment = fake_torchvision(tmp_path, "raise ImportError('not there')")
    done = python(LOAD + "print(compat.heal_torchvision())", environment)
    assert done.stdout.split() == ["False"], done.stderr


def test_the_installed_torchvision_resizes() -> None:
    import torch
    from torchvision.transforms.v2 import functional

    image = torch.arange(16, dtype=torch.float32).reshape(1, 4, 4)
    assert functional.resize(image, [2, 2], antialias=True).shape == (1, 2, 2)


def test_quiet_settings_do_not_override_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in compat.QUIET:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    compat.quiet_environment()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
    assert {name: os.environ[name] for name in compat.QUIET} == {**compat.QUIET, "OMP_WAIT_POLICY": "ACTIVE"}


def test_importing_the_package_turns_telemetry_off() -> None:
    environment = {name: value for name, value in os.environ.items() if name not in compat.QUIET}
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])
    done = python(
        "import mm_spine, os; print(os.environ['HF_HUB_DISABLE_TELEMETRY'], os.environ['DO_NOT_TRACK'])", environment
    )
    assert done.stdout.split() == ["1", "1"], done.stderr


def test_the_environment_is_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MM_A", "1")
    with compat.environment({"MM_A": "2", "MM_B": "3"}):
        assert (os.environ["MM_A"], os.environ["MM_B"]) == ("2", "3")
    assert os.environ["MM_A"] == "1" and "MM_B" not in os.environ


def test_bars_stay_off_where_the_hub_was_imported_first() -> None:
    code = "import huggingface_hub.utils as hub; print(hub.are_progress_bars_disabled());"
    code += "compat.quiet_logs(); print(hub.are_progress_bars_disabled())"
    without = {name: value for name, value in os.environ.items() if name != "HF_HUB_DISABLE_PROGRESS_BARS"}
    done = python(LOAD + code, without)
    assert done.stdout.split() == ["False", "True"], done.stderr
