"""The commands in this process: what they print and how they end."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest

from mm_spine import cli


class Ended(NamedTuple):
    """Exit code, and what was printed."""

    code: int
    out: str
    err: str


Command = Callable[..., Ended]


def runner(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *first: str) -> Command:
    """Runs `mm-spine FIRST... ARGUMENTS...`."""

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["mm-spine", *first, *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return Ended(int(ended.value.code or 0), *capsys.readouterr())

    return run


def refused(ended: Ended, *expected: str) -> None:
    """Assert that a command ended with exit code 2 and one message that holds every `expected` text."""
    assert ended.code == 2, ended
    assert ended.err.startswith("mm-spine: "), ended
    assert "Traceback" not in ended.err
    for text in expected:
        assert text in ended.err, ended.err
