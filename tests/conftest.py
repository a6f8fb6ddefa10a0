"""What every test shares: quiet threads, no network, and the checkout's folder."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
    os.environ.setdefault(name, "1")

if os.environ.get("ATEN_CPU_CAPABILITY") == "default":
    # torch's inductor, which vLLM calls, then writes vector code and compiles it without vectors: g++ stops.
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

from mm_spine.compat import heal_torchvision  # noqa: E402  # importing mm_spine sets the rest of the environment

# Tests import transformers, trl and qwen_vl_utils themselves, some before any module of ours that does so.
heal_torchvision()

ROOT = Path(__file__).resolve().parents[1]

# The same examples on every machine, and none fails because the machine is busy.
settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")

SLOW = (
    *("integrations", "runs", "sampling", "training", "commands/test_serve.py", "commands/test_ask.py"),
    *("policy/test_families.py", "policy/test_family_folders.py", "policy/test_image_cache.py", "policy/test_head.py"),
    *("processors/test_math_checker.py", "reporting/test_page.py", "reporting/test_report.py"),
)
"""Folders and files whose tests train models, run whole runs, or start processes and browsers. What `-m "not slow"`
keeps of the loop is tests/test_adapt.py."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of `SLOW` as slow."""
    here = Path(__file__).parent
    for item in items:
        place = item.path.relative_to(here).as_posix()
        if any(place == name or place.startswith(f"{name}/") for name in SLOW):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data beside the checkout; the test is skipped where there is none."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("no ../shared folder beside this checkout")
    return folder


@pytest.fixture
def tables() -> Iterator[Callable[[], None]]:
    """What a test adds to the tables of methods, answer kinds and benchmarks is gone afterwards, and so are plugins.

    Called, it is gone at once.
    """
    from mm_spine.benchmarks import BENCHMARKS
    from mm_spine.config import plugins
    from mm_spine.methods.table import METHODS
    from mm_spine.processors.answers import KINDS

    kept = [(table, dict(table)) for table in (BENCHMARKS, KINDS, METHODS, plugins._digests, sys.modules)]

    def restore() -> None:
        for table, rows in kept:
            for name in [name for name in table if name not in rows]:
                if table is not sys.modules or name.startswith(plugins._PREFIX):
                    del table[name]

    yield restore
    restore()


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """Let sockets reach this machine only: gloo's ranks talk over the loopback, nothing else may connect."""
    connect = socket.socket.connect

    def local_only(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_local(str(address[0])):
            raise RuntimeError(f"a test tried to reach {address[0]}: tests run without a network")
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", local_only)
        yield


def _is_local(host: str) -> bool:
    return host in {"localhost", "::1", "0.0.0.0", socket.gethostname()} or host.startswith("127.")


@pytest.fixture
def nothing_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that loads fails the test."""
    from mm_spine.policy.model import Policy

    def load(*arguments: Any, **named: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(Policy, "load", load)
