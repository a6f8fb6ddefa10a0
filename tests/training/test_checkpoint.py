"""What a checkpoint holds, which one is taken, and what a resumed run warns of or refuses."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from adapting import PLAIN, run, stopping_after

from mm_spine.config import ConfigError
from mm_spine.training.checkpoint import newest_checkpoint


def test_another_thread_count_or_token_budget_is_said_on_resuming(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(PLAIN, checkpoints=tmp_path, should_stop=stopping_after(1))
    with caplog.at_level(logging.WARNING, "mm_spine.training.checkpoint"):
        run(PLAIN, checkpoints=tmp_path, resume=True, should_stop=stopping_after(1))
        assert not caplog.messages
        monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
        run(PLAIN, {"engine": {"token_budget": 77}}, checkpoints=tmp_path, resume=True)
    assert any("threads=64" in message for message in caplog.messages)
    assert any("token_budget=77, written with 8192" in message for message in caplog.messages)


def test_checkpoints_are_kept_to_the_last_two_and_a_torn_one_is_not_seen(tmp_path: Path) -> None:
    run(PLAIN, {"checkpoint": {"every": 1, "keep": 2}}, checkpoints=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000002", "step_000003"]
    torn = tmp_path / "writing"
    (torn / "engine").mkdir(parents=True)
    (torn / "state.json").write_text("{")
    (tmp_path / "step_000009").mkdir()
    assert newest_checkpoint(tmp_path) == tmp_path / "step_000003"


def test_nothing_to_resume_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no checkpoint to resume from"):
        run(PLAIN, checkpoints=tmp_path, resume=True)


def test_a_checkpoint_of_more_processes_is_refused(tmp_path: Path) -> None:
    run(PLAIN, checkpoints=tmp_path, should_stop=stopping_after(1))
    state = tmp_path / "step_000001" / "state.json"
    state.write_text(state.read_text().replace('"world_size": 1', '"world_size": 2'))
    with pytest.raises(ConfigError, match="written by 2 processes, resumed with 1"):
        run(PLAIN, checkpoints=tmp_path, resume=True)
