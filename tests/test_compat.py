"""A CUDA torchvision beside a CPU torch, quiet settings, and what `doctor` says of a machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from mm_spine import compat
from mm_spine.commands import doctor

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


def test_doctor_is_quick_and_complete() -> None:
    start = time.monotonic()
    rows = {row.name: row for row in doctor.checks()}
    assert time.monotonic() - start < 3
    assert {"python", "torch", "torchvision", "sampler hf", "sampler vllm", "memory", "disk", "telemetry"} <= set(rows)
    assert rows["python"].ok
    assert rows["sampler hf"].ok
    assert rows["torch"].detail.startswith(metadata.version("torch"))
    assert all(row.advice or not row.required for row in rows.values() if not row.ok)


def test_doctor_names_the_version_that_is_needed() -> None:
    version = metadata.version("numpy")
    assert doctor._version_row(Requirement(f"numpy=={version}")) == doctor.Check("numpy", True, version)
    row = doctor._version_row(Requirement("numpy>=999"))
    assert not row.ok
    assert row.detail == f"{version}, but >=999 is needed"
    assert row.advice == 'pip install -c constraints.txt "numpy>=999"'
    assert doctor._version_row(Requirement("no-such-package-here>=1")).detail == "not installed"


def test_doctor_names_the_extra_of_an_absent_package(monkeypatch: pytest.MonkeyPatch) -> None:
    requirement = Requirement('no-such-package-here>=1; extra == "demo"')
    monkeypatch.setattr(doctor, "_requirements", lambda: (requirement,))
    monkeypatch.setattr(doctor, "_extra_of", lambda _: "demo")
    (row,) = doctor._extras()
    assert not row.ok
    assert not row.required
    assert "mm-spine[demo]" in row.advice


def test_doctor_survives_a_broken_inspection(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> str:
        raise OSError("disk is gone")

    monkeypatch.setattr(doctor.shutil, "disk_usage", broken)
    row = next(row for row in doctor.checks() if row.name == "machine")
    assert not row.ok
    assert row.detail == "OSError: disk is gone"


def test_doctor_sees_telemetry_left_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in doctor.TELEMETRY:  # libraries of other tests write there too
        monkeypatch.setenv(name, compat.QUIET[name])
    monkeypatch.setenv("DO_NOT_TRACK", "0")
    row = next(row for row in doctor.checks() if row.name == "telemetry")
    assert not row.ok
    assert row.detail == "left on by DO_NOT_TRACK"


def test_the_environment_is_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MM_A", "1")
    with compat.environment({"MM_A": "2", "MM_B": "3"}):
        assert (os.environ["MM_A"], os.environ["MM_B"]) == ("2", "3")
    assert os.environ["MM_A"] == "1" and "MM_B" not in os.environ
