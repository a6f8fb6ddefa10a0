"""`mm-spine` in this process, for the tests of the commands."""

from __future__ import annotations

import pytest
from command_line import Command, runner


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """`mm-spine` with these arguments, in this process."""
    return runner(capsys, monkeypatch)
