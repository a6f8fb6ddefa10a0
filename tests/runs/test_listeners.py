"""The list of listeners: each receives every event in order, and only a required one can stop the run."""

from __future__ import annotations

from typing import Any

import pytest
from lab import Lab

from mm_spine.files import rollout_table
from mm_spine.runs.listeners.listener import Listener, Listeners
from mm_spine.runs.run import run


class Noting(Listener):
    """Notes its events in a list that several may share; raises at one of them."""

    def __init__(self, name: str, heard: list[tuple[str, str]], fails_at: str = "") -> None:
        self.name, self.heard, self.fails_at = name, heard, fails_at

    def _note(self, event: str) -> None:
        if event == self.fails_at:
            raise OSError(f"{self.name} is full")
        self.heard.append((self.name, event))

    def phase(self, name: str, total: int | None = None, done: int = 0) -> None:
        self._note(name)

    def close(self) -> None:
        self._note("close")


def test_events_come_in_order_and_a_failed_listener_gets_no_more(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[tuple[str, str]] = []
    listeners = Listeners()
    listeners.add("a", Noting("a", heard, fails_at="two"))
    listeners.add("b", Noting("b", heard))
    for phase in ("one", "two", "three"):
        listeners.phase(phase)
    listeners.close()
    assert heard == [("a", "one"), ("b", "one"), ("a", "close"), ("b", "two"), ("b", "three"), ("b", "close")]
    assert [message for message in caplog.messages if "a is full" in message] != []


def test_a_fallback_takes_the_place_and_gets_the_event_that_failed() -> None:
    heard: list[tuple[str, str]] = []
    listeners = Listeners()
    listeners.add("a", Noting("a", heard, fails_at="two"), fallback=Noting("instead", heard))
    listeners.add("b", Noting("b", heard))
    for phase in ("one", "two"):
        listeners.phase(phase)
    assert heard == [("a", "one"), ("b", "one"), ("a", "close"), ("instead", "two"), ("b", "two")]


def test_the_error_of_a_required_listener_is_raised() -> None:
    heard: list[tuple[str, str]] = []
    listeners = Listeners()
    listeners.add("a", Noting("a", heard, fails_at="one"), required=True)
    listeners.add("b", Noting("b", heard))
    with pytest.raises(OSError, match="a is full"):
        listeners.phase("one")
    assert heard == []


def test_a_listener_of_the_caller_stays_open_and_one_that_fails_to_close_is_survived() -> None:
    heard: list[tuple[str, str]] = []
    listeners = Listeners()
    listeners.add("a", Noting("a", heard), close=False)
    listeners.add("b", Noting("b", heard, fails_at="close"))
    listeners.add("c", Noting("c", heard))
    listeners.close()
    listeners.phase("later")
    assert heard == [("c", "close")]


def test_a_step_that_cannot_be_written_stops_the_run(lab: Lab, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*how: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(rollout_table, "write_rollouts", refuse)
    with pytest.raises(OSError, match="no space left"):
        run(lab.config(), tmp_path / "run")
    assert not (tmp_path / "run" / "steps.jsonl").exists()
    assert not (tmp_path / "run" / "summary.json").exists()
