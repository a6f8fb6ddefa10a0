"""What the ranks of a run must share: refused on every rank, in one sentence that names folder and host."""

from __future__ import annotations

import logging
import re
import socket
from collections.abc import Callable
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import pytest
from small import small_config

from mm_spine import distributed
from mm_spine.config import ConfigError
from mm_spine.runs import hosts

HERE = re.escape(f"on host {socket.gethostname()} (rank 1)")


class Ranks:
    """Two ranks in two threads of this process: each calls its own work, and the collectives exchange values."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._meet, self._values = Barrier(2, timeout=20), [None, None]
        self._threads: dict[Any, int] = {}
        monkeypatch.setattr(distributed, "world_size", lambda: 2)
        monkeypatch.setattr(distributed, "rank", self._rank)
        monkeypatch.setattr(distributed, "gather", lambda share: self._exchange(share[0]))
        monkeypatch.setattr(distributed, "same_on_all", lambda value: self._exchange(value)[0])

    def _rank(self) -> int:
        from threading import current_thread

        return self._threads[current_thread()]

    def _exchange(self, value: Any) -> list[Any]:
        self._values[self._rank()] = value
        self._meet.wait()
        found = list(self._values)
        self._meet.wait()
        return found

    def call(self, *works: Callable[[], None]) -> list[str | None]:
        """What each rank's work raised."""
        raised: list[str | None] = [None, None]

        def work(rank: int) -> None:
            try:
                works[rank]()
            except ValueError as error:
                raised[rank] = str(error)

        threads = [Thread(target=work, args=(rank,)) for rank in (0, 1)]
        self._threads = {thread: rank for rank, thread in enumerate(threads)}
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return raised


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Ranks:
    monkeypatch.setattr(hosts, "VISIBLE_SECONDS", 0.3)
    return Ranks(monkeypatch)


def test_one_process_checks_nothing_and_writes_nothing(tmp_path: Path) -> None:
    hosts.check_shared_folders(tmp_path / "run", "no/model")
    hosts.check_same_start({})
    with pytest.raises(FileNotFoundError), hosts.failing_together():
        raise FileNotFoundError("as it is")
    assert not list(tmp_path.iterdir())


def test_a_shared_folder_passes_and_keeps_nothing_of_the_check(ranks: Ranks, tmp_path: Path) -> None:
    def work() -> None:
        hosts.check_shared_folders(tmp_path / "run", "Qwen/some-hub-id")

    assert ranks.call(work, work) == [None, None]
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_folder_of_its_own_is_refused_on_both_ranks_and_leaves_nothing(ranks: Ranks, tmp_path: Path) -> None:
    raised = ranks.call(*(lambda host=host: hosts.check_shared_folders(tmp_path / host / "run", "m") for host in "ab"))
    assert raised[0] == raised[1]
    assert re.match(
        rf"--output {tmp_path}/b/run {HERE} is not the folder {tmp_path}/a/run of rank 0; all hosts write there, so "
        "give an absolute path of a folder that every host shares$",
        raised[0] or "",
    )
    assert not (tmp_path / "a" / "run").exists() and not (tmp_path / "b").exists()


def test_a_folder_that_held_something_stays(ranks: Ranks, tmp_path: Path) -> None:
    (tmp_path / "a" / "run").mkdir(parents=True)
    ranks.call(*(lambda host=host: hosts.check_shared_folders(tmp_path / host / "run", "m") for host in "ab"))
    assert (tmp_path / "a" / "run").is_dir() and not list((tmp_path / "a" / "run").iterdir())


def test_a_folder_that_cannot_be_written_is_refused_on_both(ranks: Ranks, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    def work() -> None:
        hosts.check_shared_folders(tmp_path / "file" / "run", "m")

    raised = ranks.call(work, work)
    assert raised[0] == raised[1] and "cannot be written to" in (raised[0] or "")


def test_a_model_folder_that_a_host_lacks_is_refused(ranks: Ranks, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    models = (str(tmp_path / "model"), str(tmp_path / "elsewhere"))
    raised = ranks.call(*(lambda model=model: hosts.check_shared_folders(tmp_path / "run", model) for model in models))
    assert raised[0] == raised[1]
    assert re.match(rf"model={models[1]}: not there {HERE}; copy it to the same path on every host$", raised[0] or "")


START = {"model": "m", "questions": {"adapted": {"q": {"prompt": "p"}}}, "answers": {}, "config": {"seed": 0}}


@pytest.mark.parametrize(
    ("other", "what"),
    [
        ({"model": "n"}, "the model's weights changed"),
        ({"questions": {"adapted": {"q": {"prompt": "x"}}}}, "prompt of question 'q' changed"),
        ({"config": {"seed": 1}}, "its configuration differs"),
        ({"plugins": {"my.py": "1"}}, "the plugin my.py was added"),
        ({"files": {"clip/config.json": "1"}}, "clip/config.json, which the method reads, changed"),
    ],
)
def test_another_start_on_a_host_is_refused(ranks: Ranks, other: dict[str, Any], what: str) -> None:
    starts = ({**START, "code": "a"}, {**START, **other, "code": "b"})
    raised = ranks.call(*(lambda start=start: hosts.check_same_start(start) for start in starts))
    assert raised[0] == raised[1]
    assert re.match(rf"{what} {HERE}, compared with rank 0; give every host", raised[0] or ""), raised[0]


def test_other_code_is_no_other_start(ranks: Ranks) -> None:
    works = (lambda code=code: hosts.check_same_start({**START, "code": code}) for code in "ab")
    assert ranks.call(*works) == [None, None]


def test_an_error_of_one_rank_ends_both(ranks: Ranks) -> None:
    def fine() -> None:
        with hosts.failing_together():
            pass

    def broken() -> None:
        with hosts.failing_together():
            raise ConfigError("questions.jsonl: not there")

    raised = ranks.call(fine, broken)
    assert raised[1] == "questions.jsonl: not there"
    assert re.match(rf"questions.jsonl: not there {HERE}$", raised[0] or "")


@pytest.mark.parametrize(
    ("stage", "ranks", "size", "warned"), [(3, 2, 100, True), (2, 2, 100, False), (3, 1, 100, False), (3, 2, 9, False)]
)
def test_whole_weights_of_a_large_model_under_zero_3_are_warned_of(
    stage: int,
    ranks: int,
    size: int,
    warned: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "model.safetensors").write_bytes(bytes(size))
    monkeypatch.setattr(hosts, "LARGE", 10)
    monkeypatch.setattr(distributed, "world_size", lambda: ranks)
    with caplog.at_level(logging.WARNING):
        hosts.warn_of_whole_weights(small_config({"engine": {"zero_stage": stage}}), tmp_path)
    assert warned == ("each of 2 ranks also keeps the whole weights" in caplog.text)
