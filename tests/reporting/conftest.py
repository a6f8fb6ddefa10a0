"""Runs to report."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from saved_runs import BEFORE, write_run

from mm_spine.reporting import report


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_run(tmp_path_factory.mktemp("finished") / "run")
    report.write_report(folder)
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """A run's folder to take files from."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("other") / "ttrl", BEFORE, BEFORE, steps=2, method="ttrl $x$ _y")
