"""What a checkpoint holds, which one is taken, and what a resumed run warns of or refuses."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import sys
from pathlib import Path

import pytest
import torch
from adapting import PLAIN, run, stopping_after

from mm_spine.config import ConfigError
from mm_spine.methods.apply import BAND
from mm_spine.training.checkpoint import SavedState, newest_checkpoint


def rewrite(saved: Path, state: str) -> None:
    """Replace a checkpoint's `state.json`, its checksum too."""
    (saved / "state.json").write_text(state)
    sums = (saved / "SHA256SUMS").read_text()
    other = hashlib.sha256(state.encode()).hexdigest()
    (saved / "SHA256SUMS").write_text(re.sub(r"\w{64}(?=  state.json)", other, sums))


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
    torn.mkdir()
    (torn / "state.json").write_text("{")
    (tmp_path / "step_000009").mkdir()
    assert newest_checkpoint(tmp_path) == tmp_path / "step_000003"


def test_nothing_to_resume_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no checkpoint to resume from"):
        run(PLAIN, checkpoints=tmp_path, resume=True)


def test_a_checkpoint_of_more_processes_is_refused(tmp_path: Path) -> None:
    run(PLAIN, checkpoints=tmp_path, should_stop=stopping_after(1))
    saved = tmp_path / "step_000001"
    rewrite(saved, (saved / "state.json").read_text().replace('"world_size": 1', '"world_size": 2'))
    with pytest.raises(ConfigError, match="written by 2 processes, resumed with 1"):
        run(PLAIN, checkpoints=tmp_path, resume=True)


def test_auto_writes_a_checkpoint_when_ten_minutes_have_passed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rare = run(PLAIN, checkpoints=tmp_path / "rare")[0].weights()
    assert [path.name for path in (tmp_path / "rare").iterdir()] == ["step_000003"]
    monkeypatch.setattr(sys.modules["mm_spine.adapt"], "AUTO_SECONDS", 0.0)
    often = run(PLAIN, {"checkpoint": {"keep": 3}}, checkpoints=tmp_path / "often")[0].weights()
    assert len(list((tmp_path / "often").iterdir())) == 3
    assert all(torch.equal(often[name], weight) for name, weight in rare.items())


def test_a_checkpoint_of_another_stage_is_refused(tmp_path: Path) -> None:
    run(PLAIN, checkpoints=tmp_path, should_stop=stopping_after(1))
    with pytest.raises(ConfigError, match="another model, model.train or ZeRO stage"):
        run(PLAIN, {"engine": {"zero_stage": 3}}, checkpoints=tmp_path, resume=True)


def test_a_resumed_run_writes_the_checkpoint_of_an_uninterrupted_one(tmp_path: Path) -> None:
    """To the byte, the gap of the first step included."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(PLAIN, {"checkpoint": {"every": 1}}, checkpoints=whole)
    run(PLAIN, {"checkpoint": {"every": 1}}, checkpoints=parts, should_stop=stopping_after(1))
    run(PLAIN, {"checkpoint": {"every": 1}}, checkpoints=parts, resume=True)
    names = sorted(path.relative_to(whole) for path in whole.rglob("*.*") if path.is_file())
    assert Path("step_000003", "state.json") in names and Path("step_000003", "weights.safetensors") in names
    assert all((whole / name).read_bytes() == (parts / name).read_bytes() for name in names)
    state = json.loads((parts / "step_000003" / "state.json").read_text())
    assert 0 < state["first_gaps"]["selected"] < 1e-4


def test_a_checkpoint_without_the_gap_of_the_first_step_is_read(tmp_path: Path) -> None:
    run(PLAIN, checkpoints=tmp_path, should_stop=stopping_after(1))
    saved = tmp_path / "step_000001"
    state = json.loads((saved / "state.json").read_text())
    del state["first_gaps"]
    rewrite(saved, json.dumps(state))
    assert run(PLAIN, checkpoints=tmp_path, resume=True)[3].steps == 3


@pytest.mark.parametrize(("anchored", "memory"), [([0.25, 0.75], {BAND: [0.25, 0.75]}), (None, {})])
def test_the_fixed_band_of_an_older_checkpoint_is_remembered(
    anchored: list[float] | None, memory: dict[str, list[float]]
) -> None:
    older = {"world_size": 1, "threads": 1, "token_budget": None, "token_budget_set": "auto", "step": 2}
    assert SavedState(**older, anchored=anchored).memory == memory  # type: ignore[arg-type]
