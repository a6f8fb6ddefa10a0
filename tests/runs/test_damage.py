"""What happens to a run's folder: damaged files, a hostile pickle, a second process, changed data, a full disk."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lab import VARIANTS, Interrupting, Lab, assert_same, never_load, steps_of, summary_of, terminate, traces
from safetensors.torch import load_file, save_file

from mm_spine import files
from mm_spine.config import ConfigError, RunStopped
from mm_spine.policy.model import Policy
from mm_spine.reporting.compare import compare_runs
from mm_spine.runs.evaluate import Evaluations
from mm_spine.runs.run import run
from mm_spine.training import checkpoint
from mm_spine.training.checkpoint import damage, newest_checkpoint

EVERY = {"checkpoint": {"every": 1, "keep": 2}}


@pytest.fixture
def stopped(lab: Lab, tmp_path: Path) -> Path:
    """A run of three steps stopped after the second, with two checkpoints."""
    kept = lab.folder / "stopped" / "damage"
    if not kept.exists():
        assert run(lab.config(EVERY), kept, listener=Interrupting(1, terminate)) is None
    return Path(shutil.copytree(kept, tmp_path / "stopped"))


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(bytes(data))


def test_one_flipped_bit_in_any_file_of_a_checkpoint_is_noticed(stopped: Path) -> None:
    newest = stopped / "checkpoints" / "step_000002"
    assert damage(newest) is None
    names = sorted(path.name for path in newest.iterdir())
    assert names == ["SHA256SUMS", "optimizer_00000.safetensors", "state.json", "weights.safetensors"]
    for path in newest.iterdir():
        whole = path.read_bytes()
        # Every bit of the small files, and bits all over the large ones.
        for bit in range(0, 8 * len(whole), 1 if len(whole) < 1000 else len(whole) // 3 + 1):
            flip(path, bit)
            assert damage(newest) is not None, f"{path.name}, bit {bit}"
            path.write_bytes(whole)
    assert damage(newest) is None


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("name", ["SHA256SUMS", "optimizer_00000.safetensors", "state.json", "weights.safetensors"])
@pytest.mark.parametrize("harm", [truncated, emptied, Path.unlink], ids=["truncated", "empty", "missing"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
    stopped: Path, name: str, harm: Callable[[Path], None]
) -> None:
    harm(stopped / "checkpoints" / "step_000002" / name)
    assert newest_checkpoint(stopped / "checkpoints") == stopped / "checkpoints" / "step_000001"


def test_a_run_that_fell_back_says_so_and_ends_as_the_uninterrupted_one(
    lab: Lab, stopped: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flip(stopped / "checkpoints" / "step_000002" / "weights.safetensors", 100_000)
    with caplog.at_level(logging.WARNING):
        assert run(lab.config(EVERY), stopped, resume=True) is not None
    said = [message for message in caplog.messages if "step_000002" in message]
    assert len(said) == 1 and re.search(r"weights.safetensors is damaged.*going on from step_000001", said[0])
    assert_same(lab.run("base"), stopped)


@pytest.mark.parametrize("name", ["steps.jsonl", "timings.jsonl"])
def test_a_log_torn_inside_what_a_checkpoint_covers_falls_back_too(
    lab: Lab, stopped: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = (stopped / name).read_bytes().splitlines(keepends=True)
    (stopped / name).write_bytes(first + second[:20])
    with caplog.at_level(logging.WARNING):
        assert run(lab.config(EVERY), stopped, resume=True) is not None
    assert any(f"{name} is damaged" in message for message in caplog.messages)
    assert_same(lab.run("base"), stopped)


def test_without_a_whole_checkpoint_one_sentence_ends_it(
    lab: Lab, stopped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (stopped / "checkpoints" / "step_000001" / "state.json").unlink()
    emptied(stopped / "checkpoints" / "step_000002" / "weights.safetensors")
    before = traces(stopped)
    monkeypatch.setattr(Policy, "load", never_load)
    with pytest.raises(ConfigError, match="no checkpoint can be used .step_000002: weights.*step_000001: state.json"):
        run(lab.config(EVERY), stopped, resume=True)
    assert traces(stopped) == before


class Hostile:
    def __init__(self, touched: Path) -> None:
        self.touched = touched

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.touched),)


def test_no_pickle_of_a_run_folder_is_written_or_read(lab: Lab, stopped: Path, tmp_path: Path) -> None:
    pickles = [path for path in stopped.rglob("*") if path.suffix in {".pt", ".pth", ".bin", ".pkl", ".pickle"}]
    assert pickles == []
    newest, touched = stopped / "checkpoints" / "step_000002", tmp_path / "touched"
    hostile = pickle.dumps(Hostile(touched))
    (newest / "engine").mkdir()
    for name in ("engine/mp_rank_00_model_states.pt", "weights.safetensors", "optimizer_00000.safetensors"):
        (newest / name).write_bytes(hostile)
    names = [path.name for path in newest.iterdir() if path.is_file() and path.name != "SHA256SUMS"]
    (newest / "SHA256SUMS").write_text("".join(f"{files.sha256(newest / name)}  {name}\n" for name in names))
    with pytest.raises(ConfigError, match="cannot be read as tensors"):
        run(lab.config(EVERY), stopped, resume=True)
    assert not touched.exists()
    # As an older version left it: only pickles, no checksums.
    (newest / "SHA256SUMS").unlink()
    assert run(lab.config(EVERY), stopped, resume=True) is not None
    assert not touched.exists()


def test_a_second_process_is_refused(lab: Lab, stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Policy, "load", never_load)
    with (stopped / "run.lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another process is running this run"):
            run(lab.config(EVERY), stopped, resume=True)
    with pytest.raises(AssertionError, match="before the check"):
        run(lab.config(EVERY), stopped, resume=True)


def test_of_two_starts_at_once_one_is_refused(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = Policy.load

    def late(*args: Any) -> Policy:
        """Another process claims the folder while this one loads its model."""
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "config.yaml").write_text("benchmark: digits\n")
        return load(*args)

    monkeypatch.setattr(Policy, "load", late)
    with pytest.raises(ConfigError, match="already holds a run"):
        run(lab.config(), tmp_path / "run")
    assert (tmp_path / "run" / "config.yaml").read_text() == "benchmark: digits\n"


def reworded(data: Path) -> None:
    rows = [json.loads(line) for line in (data / "questions.jsonl").read_text().splitlines()]
    rows[2]["prompt"] = "Which digit is it?"
    (data / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def regraded(data: Path) -> None:
    rows = [json.loads(line) for line in (data / "questions.jsonl").read_text().splitlines()]
    rows[2]["answer"] = ["7"]
    (data / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def redrawn(data: Path) -> None:
    shutil.copy(data / "questions0.png", data / "questions2.png")


def nudged(data: Path) -> None:
    model = data.parent / "model" / "model.safetensors"
    weights = load_file(model)
    next(iter(weights.values())).view(-1)[0] += 1e-3
    save_file(weights, model, metadata={"format": "pt"})


@pytest.mark.parametrize(
    "change, said",
    [
        (reworded, "prompt of question 'questions-3' changed"),
        (regraded, "a gold answer of the split 'adapted' changed"),
        (redrawn, "images of question 'questions-3' changed"),
        (nudged, "the model's weights changed"),
    ],
)
def test_changed_data_is_named_on_resuming_for_a_shared_before_and_in_a_comparison(
    lab: Lab, tmp_path: Path, change: Callable[[Path], None], said: str
) -> None:
    shutil.copytree(lab.data, tmp_path / "data")
    shutil.copytree(lab.model, tmp_path / "model")
    own = {"model": {"path": str(tmp_path / "model")}, "optim": {"steps": 2}}
    config = lab.config(own, data=tmp_path / "data")
    assert run(config, tmp_path / "first") is not None
    assert run(config, tmp_path / "stopped", listener=Interrupting(0, terminate)) is None
    change(tmp_path / "data")
    with pytest.raises(ConfigError, match=said):
        run(config, tmp_path / "stopped", resume=True)
    shared = lab.config(own, {"evaluation": {"before": str(tmp_path / "first")}}, data=tmp_path / "data")
    with pytest.raises(ConfigError, match=f"evaluation.before=.*{said}"):
        run(shared, tmp_path / "third")
    assert run(config, tmp_path / "second") is not None
    with pytest.raises(ValueError, match=f"first and second cannot be compared: {said}"):
        compare_runs([tmp_path / "first", tmp_path / "second"])


def test_a_run_without_a_fingerprint_is_resumed_with_a_warning(
    lab: Lab, stopped: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (stopped / "fingerprint.json").unlink()
    with caplog.at_level(logging.WARNING):
        assert run(lab.config(EVERY), stopped, resume=True) is not None
    assert any("no fingerprint.json" in message for message in caplog.messages)
    assert_same(lab.run("base"), stopped)


def test_a_damaged_fingerprint_is_named(lab: Lab, stopped: Path) -> None:
    emptied(stopped / "fingerprint.json")
    with pytest.raises(ValueError, match=r"fingerprint\.json: damaged"):
        run(lab.config(EVERY), stopped, resume=True)


def test_a_run_stopped_in_its_last_evaluation_resumes_there(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: Evaluations, *ignored: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Evaluations, "after", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(lab.config(), tmp_path / "run")
    assert (tmp_path / "run" / "adapted" / "model.safetensors").is_file()
    logged = (tmp_path / "run" / "steps.jsonl").stat().st_mtime_ns, (tmp_path / "run" / "rollouts").stat().st_mtime_ns
    steps: list[int] = []
    assert run(lab.config(), tmp_path / "run", resume=True, listener=Noting(steps)) is not None
    assert steps == [] and logged[1] == (tmp_path / "run" / "rollouts").stat().st_mtime_ns
    assert_same(lab.run("base"), tmp_path / "run")
    for name in ("before", "after", "steps"):
        path = f"evaluation/{name}.jsonl"
        assert (lab.run("base") / path).read_bytes() == (tmp_path / "run" / path).read_bytes()


class Noting(Interrupting):
    """Notes the numbers of the steps that were taken."""

    def __init__(self, steps: list[int]) -> None:
        super().__init__(-1, lambda: None)
        self.steps = steps

    def step(self, step: Any) -> None:
        self.steps.append(step.report.step)


def test_a_finished_run_leaves_checkpoints_only_where_a_number_asked_for_them(lab: Lab) -> None:
    assert not (lab.run("base") / "checkpoints").exists()
    kept = lab.run("kept", EVERY)
    assert sorted(path.name for path in (kept / "checkpoints").iterdir()) == ["step_000002", "step_000003"]


def test_a_finished_run_without_its_report_gets_it(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = Path(shutil.copytree(lab.run("base"), tmp_path / "run"))
    page = (output / "report.html").read_bytes()
    (output / "report.html").unlink()
    (output / ".report.html.77.tmp").write_bytes(page[:100])
    monkeypatch.setattr(Policy, "load", never_load)
    summary = run(lab.config(), output, resume=True)
    assert summary == summary_of(output)
    assert (output / "report.html").read_bytes() == page and not (output / ".report.html.77.tmp").exists()
    with pytest.raises(ConfigError, match="that run is finished"):
        run(lab.config(), output, resume=True)


def test_what_a_crash_left_half_written_is_removed(lab: Lab, stopped: Path) -> None:
    for name in ("rollouts/.step_000002.parquet.9.tmp", ".config.yaml.9.tmp", "evaluation/.after.jsonl.9.tmp"):
        (stopped / name).write_bytes(b"half")
    for name in ("checkpoints/writing", "adapted.writing"):
        (stopped / name).mkdir()
        (stopped / name / "weights.safetensors").write_bytes(b"half")
    assert run(lab.config(EVERY), stopped, resume=True) is not None
    assert not list(stopped.rglob("*.tmp")) and not list(stopped.rglob("*writing"))
    assert_same(lab.run("base"), stopped)


@pytest.mark.parametrize("harm", [Path.unlink, truncated], ids=["missing", "damaged"])
def test_missing_rollouts_are_said_and_counted(
    lab: Lab, stopped: Path, harm: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    harm(stopped / "rollouts" / "step_000001.parquet")
    with caplog.at_level(logging.WARNING):
        summary = run(lab.config(EVERY), stopped, resume=True)
    assert summary is not None and summary["missing_rollouts"] == [1]
    assert any("1 of 3 files are missing or damaged (step_000001.parquet)" in message for message in caplog.messages)
    assert [row["step"] for row in files.read_json_lines(stopped / "evaluation" / "steps.jsonl")] == [0, 2]
    assert summary_of(lab.run("base"))["missing_rollouts"] == []


def test_a_full_disk_ends_a_run_in_a_sentence_and_it_resumes(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Policy, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Policy, "save", full)
        with pytest.raises(RunStopped, match="adapted: could not be written .No space left.*--resume"):
            run(lab.config(), tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*writing"))
    assert len(steps_of(tmp_path / "run")) == 3
    assert run(lab.config(), tmp_path / "run", resume=True) is not None
    assert_same(lab.run("base"), tmp_path / "run")


def test_an_error_of_a_rust_library_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(OSError) as raised, files.atomic(tmp_path / "tokenizer.json"):
        raise Exception("I/O error: No space left on device (os error 28)")
    assert raised.value.errno == errno.ENOSPC and raised.value.filename == str(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("variant", ["lora", "zero2", "zero3"])
def test_checkpoints_of_every_kind_hold_only_tensors_and_are_whole(lab: Lab, variant: str) -> None:
    output = lab.run(f"kept-{variant}", VARIANTS[variant], {"optim": {"steps": 1}}, EVERY)
    newest = output / "checkpoints" / "step_000001"
    assert damage(newest) is None
    held = load_file(newest / "optimizer_00000.safetensors")
    assert {name.partition(".")[2] for name in held} >= {"step", "exp_avg", "exp_avg_sq"}
    assert (newest / "weights.safetensors").exists() == (variant != "zero3")


def test_a_signal_during_the_last_checkpoint_stops_the_run_before_its_evaluation(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = checkpoint.save

    def stopped_while_saving(*arguments: Any) -> None:
        save(*arguments)
        terminate()

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", stopped_while_saving)
        assert run(lab.config(), tmp_path / "run") is None
    assert json.loads((tmp_path / "run" / "stopped.json").read_text()) == {"stopped_by": "SIGTERM", "steps": 3}
    assert not (tmp_path / "run" / "evaluation" / "after.jsonl").exists()
    assert run(lab.config(), tmp_path / "run", resume=True) is not None
    assert_same(lab.run("base"), tmp_path / "run")
