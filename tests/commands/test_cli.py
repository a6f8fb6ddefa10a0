"""The commands as a user meets them: exit codes, one message for what is wrong, and then nothing left behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from command_line import Command, refused
from rich.console import Console

from mm_spine.benchmarks.digits import MODEL_DIR
from mm_spine.commands import doctor, printing
from mm_spine.commands.estimate import estimate
from mm_spine.runs.plan import load_config
from mm_spine.runs.signals import noted_signals

TINY = (
    "limit=2",
    "threads=1",
    "optim.questions_per_step=2",
    "sampling.votes=2",
    "sampling.train_rollouts=2",
    "evaluation.samples=2",
    "evaluation.limit=2",
)


def test_the_version_is_that_of_the_package(command: Command) -> None:
    done = command("--version")
    assert done.code == 0 and re.fullmatch(r"mm-spine \S.*\n", done.out)


# Bad input stops before the model loads


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["digits", "--method", "spien"], ["method='spien'", "did you mean 'spine'"]),
        (["digits", "method=ttlr"], ["method='ttlr'", "did you mean 'ttrl'"]),
        (["digts"], ["'digts' is neither a benchmark nor a folder", "'digits'"]),
        (["absent.yaml"], ["absent.yaml", "No such file"]),
        (["digits", "split=adopt"], ["split='adopt'", "did you mean 'adapt'"]),
        (["digits", "sampling.vots=4"], ["sampling.vots", "did you mean 'votes'"]),
        (["digits", "optim.lr=fast"], ["optim.lr='fast'", "valid number"]),
        (["digits", "optim.lr"], ["'optim.lr'", "key=value"]),
        (["digits", "optim.lr=[1"], ["'optim.lr=[1'", "YAML"]),
        (["digits", "method.share=0"], ["method.share=0", "greater than 0"]),
        (["digits", "method.share=1.5"], ["method.share=1.5", "less than or equal to 1"]),
        (["digits", "sampling.votes=1"], ["sampling.votes.max=1", "greater than or equal to 2"]),
        (["digits", "sampling.train_rollouts=17"], ["train_rollouts=17 is more than votes=16"]),
        (["digits", "sampling.top_p=0.9"], ["top_p=0.9", "evaluation.top_p"]),
        (["digits", "--method", "oracle"], ["--allow-labels"]),
        (["digits", "evaluation.before=nowhere"], ["evaluation.before=nowhere", "no finished run"]),
        (["digits", "model.path=./nowhere"], ["model=./nowhere", "neither a folder nor a hub id"]),
    ],
    ids=lambda value: " ".join(value) if value and "digits" in value[0] else "",
)
def test_bad_input_is_one_message_before_anything_loads(
    arguments: list[str], expected: list[str], command: Command, nothing_loads: None, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    refused(command("adapt", *arguments, "--output", str(output)), *expected)
    assert not output.exists(), "nothing may be left behind, or the mended command would find the folder in use"


def test_an_output_folder_must_be_named(command: Command, nothing_loads: None) -> None:
    refused(command("adapt", "digits"), "--output is not set")


def test_an_output_folder_in_use_is_left_as_it_was(command: Command, nothing_loads: None, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("mine")
    refused(command("adapt", "digits", "--output", str(tmp_path)), str(tmp_path), "already holds a run", "--resume")
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
    assert (tmp_path / "config.yaml").read_text() == "mine"


def test_an_output_that_cannot_be_a_folder_is_named(
    command: Command, nothing_loads: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("mine")
    for output in ("file", "file/run"):
        refused(command("adapt", "digits", "--output", str(tmp_path / output)), str(tmp_path / output))
    assert (tmp_path / "file").read_text() == "mine"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    ended = command("adapt", "digits", "--output", str(tmp_path / "run"))
    refused(ended, f"{tmp_path} is not a folder that can be written to")


def test_resuming_wants_the_same_unfinished_run(command: Command, nothing_loads: None, tmp_path: Path) -> None:
    resume = ("adapt", "digits", "--resume", "--output", str(tmp_path))
    refused(command(*resume), "nothing to resume")
    config = load_config("digits").model_dump(mode="json")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    refused(command(*resume, "optim.steps=99"), "optim.steps was 12, now 99", "resume with the same")
    (tmp_path / "summary.json").write_text("{}")
    (tmp_path / "report.html").write_text("")
    refused(command(*resume), "that run is finished")


def test_a_folder_without_usable_questions_leaves_no_output(
    command: Command, nothing_loads: None, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "questions.jsonl").write_text("{broken\n")
    arguments = ("adapt", str(tmp_path / "data"), f"model.path={MODEL_DIR}", "--output", str(tmp_path / "run"))
    refused(command(*arguments), "questions.jsonl", "no usable question")
    assert not (tmp_path / "run").exists()
    refused(command("adapt", str(tmp_path / "data"), "--output", str(tmp_path / "run")), "model.path is not set")


def _without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _of_another_kind(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "llava"}))


def _truncated(folder: Path) -> None:
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])


def _overwritten(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"<!DOCTYPE html>" * 100)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (_without_weights, ["no *.safetensors weights"]),
        (_pickled, ["no *.safetensors weights", "pickled weights are not read"]),
        (_without_config, ["no config.json there"]),
        (_of_another_kind, ["model_type is 'llava'", "supported: qwen2_5_vl"]),
        (_truncated, ["model.safetensors: corrupt or truncated"]),
        (_overwritten, ["model.safetensors: corrupt or truncated"]),
    ],
)
def test_a_model_folder_that_cannot_be_used_is_named(
    damage: Callable[[Path], None], expected: list[str], command: Command, nothing_loads: None, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(MODEL_DIR, folder)
    damage(folder)
    for arguments in (
        ("adapt", "digits", f"model.path={folder}", "--output", str(tmp_path / "run")),
        ("adapt", "digits", f"model.path={folder}", "--dry-run"),
        ("evaluate", str(folder), "digits"),
    ):
        refused(command(*arguments), str(folder), *expected)
    assert not (tmp_path / "run").exists()


def test_a_run_that_cannot_go_on_says_why_without_a_traceback(command: Command, tmp_path: Path) -> None:
    given = (*TINY, "optim.steps=1", "engine.parity_limit=1e-12", "--method", "ttrl", "--output", str(tmp_path / "run"))
    refused(command("adapt", "digits", *given), "engine.parity_limit")


# The dry run


def test_the_dry_run_prints_the_configuration_and_the_arithmetic(command: Command, nothing_loads: None) -> None:
    ended = command("adapt", "digits", "--dry-run", "--method", "ttrl", "--seed", "3", "optim.lr=1e-5")
    assert ended.code == 0, ended
    printed, table = ended.out.split("By arithmetic")
    config = load_config("digits", ["optim.lr=1e-5"], "ttrl", 3)
    assert yaml.safe_load(printed) == config.model_dump(mode="json")
    rows = {name: int(value.replace(",", "")) for name, value in re.findall(r"(\w+) +│ +([\d,]+)", table)}
    assert rows == estimate(config, MODEL_DIR)


def test_the_dry_run_needs_no_model(command: Command, nothing_loads: None) -> None:
    ended = command("adapt", "mathvision", "--dry-run", "model.path=nobody/has-this-one", "source=nowhere")
    assert ended.code == 0, ended
    printed, said, _ = ended.out.partition("no estimate: nobody/has-this-one is not on this machine")
    assert said and yaml.safe_load(printed)["source"] == "nowhere"


def test_an_embedded_benchmark_has_no_other_source(command: Command, nothing_loads: None) -> None:
    refused(command("adapt", "digits", "--dry-run", "source=elsewhere"), "source='elsewhere'", "digits")


def test_the_dry_run_prints_a_configuration_that_can_be_run(
    command: Command, nothing_loads: None, tmp_path: Path
) -> None:
    folder = tmp_path / f"a folder [red] with a word longer than any line {'x' * 100} and more"
    shutil.copytree(MODEL_DIR, folder)
    ended = command("adapt", "digits", "--dry-run", f"model.path={json.dumps(str(folder))}")
    assert yaml.safe_load(ended.out.split("By arithmetic")[0])["model"]["path"] == str(folder)


# The other commands


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(printing, "console", Console(width=300))


def test_doctor_looks_without_loading_a_model(command: Command, wide: None, nothing_loads: None) -> None:
    ended = command("doctor")
    assert ended.code == 0
    for name in ("python", "torch", "deepspeed", "sampler hf", "sampler vllm", "memory", "embedded model", "telemetry"):
        assert re.search(rf"│ {name} +│ (ok|no)", ended.out), name


def test_brackets_in_advice_are_printed(command: Command, wide: None, monkeypatch: pytest.MonkeyPatch) -> None:
    row = doctor.Check("gradio", False, "not in [here]", 'pip install "mm-spine[demo]"')
    monkeypatch.setattr(doctor, "checks", lambda: [row])
    ended = command("doctor")
    assert row.detail in ended.out and row.advice in ended.out


def test_evaluate_prints_the_metrics_and_writes_the_verdicts(command: Command, tmp_path: Path, wide: None) -> None:
    output = tmp_path / "verdicts.jsonl"
    few = ("limit=3", "evaluation.samples=2", "split=tune", "threads=1")
    ended = command("evaluate", str(MODEL_DIR), "digits", *few, "--output", str(output))
    assert ended.code == 0, ended
    further = ("answer_entropy", "distinct_answers", "pass_at_k, k = 1", "pass_at_k, k = 2")
    for name in ("greedy", "greedy_ci95", "pass_at_1", "pass_at_1_ci95", "maj_at_n", "pass_at_n", "unparsed", *further):
        assert re.search(rf"│ {name} +│ [\[\d]", ended.out), name
    items = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(item["split"], len(item["verdicts"])) for item in items] == [("tune", 2)] * 3


def test_evaluate_takes_a_model_whose_name_yaml_would_read_otherwise(
    command: Command, nothing_loads: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(command("evaluate", "007", "digits"), "model=007")


@pytest.mark.slow
def test_adapt_then_compare(command: Command, tmp_path: Path, wide: None) -> None:
    none, ttrl = tmp_path / "none", tmp_path / "ttrl"
    assert command("adapt", "digits", *TINY, "--method", "none", "--output", str(none)).code == 0
    shared = ("optim.steps=1", f"evaluation.before={none}")
    ended = command("adapt", "digits", *TINY, *shared, "--method", "ttrl", "--output", str(ttrl))
    assert (ended.code, ended.out.splitlines()[-1]) == (0, f"written to {ttrl}")
    ended = command("compare", str(none), str(ttrl))
    assert ended.code == 0
    for name in ("none", "ttrl"):
        assert re.search(rf"(?m)^\W*{name}\b", ended.out), ended.out
    summary = json.loads((ttrl / "summary.json").read_text())
    config = load_config("digits", [*TINY, *shared], "ttrl")
    found = estimate(config, MODEL_DIR)
    assert (summary["trainable_parameters"], summary["frozen_parameters"]) == (
        found["parameters_trainable"],
        found["parameters_frozen"],
    )
    refused(command("adapt", "digits", *TINY, "--method", "ttrl", "--output", str(ttrl)), "already holds a run")
    ended = command("adapt", "digits", *TINY, "seed=1", *shared, "--output", str(tmp_path / "other"))
    assert ended.code == 2 and f"evaluation.before={none}: that run started from another" in ended.err
    assert not (tmp_path / "other").exists()


def test_help_names_every_command(command: Command) -> None:
    ended = command("--help")
    assert ended.code == 0
    for name in ("adapt", "evaluate", "methods", "compare", "doctor"):
        assert re.search(rf"\b{name}\b", ended.out)


# In a shell, and signals

SHELL = [sys.executable, "-m", "mm_spine.cli"]


def alone() -> dict[str, str]:
    """The environment without what a run in this process left there for its own rank."""
    ranks = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    return {name: value for name, value in os.environ.items() if name not in ranks}


@pytest.mark.slow
def test_the_shell_sees_code_2_and_no_traceback() -> None:
    arguments = ["adapt", "digits", "optim.rl=1", "--output", "nowhere"]
    done = subprocess.run([*SHELL, *arguments], capture_output=True, text=True, timeout=120, check=False, env=alone())
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith("mm-spine: optim.rl: no such key; did you mean 'lr'?")
    assert "Traceback" not in done.stderr


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., tuple[subprocess.Popen[bytes], Path]]]:
    """Start `mm-spine` with these arguments; its process, and the file that its log goes to. Ended with the test."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str) -> tuple[subprocess.Popen[bytes], Path]:
        log = tmp_path / f"{len(processes)}.log"
        with log.open("wb") as file:
            processes.append(subprocess.Popen([*SHELL, *arguments], stdout=file, stderr=subprocess.STDOUT, env=alone()))
        return processes[-1], log

    yield start
    for process in processes:
        process.kill()
        process.wait(30)


def first_step(process: subprocess.Popen[bytes], log: Path) -> int:
    """Wait for the first step line; the number it gives."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if found := re.search(r"step (\d+)/", log.read_text()):
            return int(found[1])
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)
    raise AssertionError(f"no step in 120 s:\n{log.read_text()}")


def stopped_at(output: Path, by: str) -> int:
    """The step that the run says it stopped at, its checkpoint and its lines agreeing."""
    stopped = json.loads((output / "stopped.json").read_text())
    newest = output / "checkpoints" / f"step_{stopped['steps']:06d}"
    assert stopped["stopped_by"] == by
    assert json.loads((newest / "state.json").read_text())["step"] == stopped["steps"]
    assert (newest / "weights.safetensors").is_file() and list(newest.glob("optimizer_*.safetensors"))
    assert not (output / "checkpoints" / "writing").exists()
    steps = [json.loads(line)["step"] for line in (output / "steps.jsonl").read_text().splitlines()]
    assert steps == list(range(stopped["steps"]))
    assert not (output / "summary.json").exists() and not (output / "adapted").exists()
    return int(stopped["steps"])


@pytest.mark.slow
def test_a_signal_ends_the_step_and_the_run_goes_on_from_there(
    started: Callable[..., tuple[subprocess.Popen[bytes], Path]], tmp_path: Path
) -> None:
    output = tmp_path / "run"
    few = ("evaluation.held_out=false", "sampling.max_new_tokens=8", "evaluation.max_new_tokens=8")
    arguments = ("adapt", "digits", *TINY, *few, "optim.steps=200", "--output", str(output))

    process, log = started(*arguments)
    assert first_step(process, log) == 1
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143, log.read_text()
    done = stopped_at(output, "SIGTERM")
    assert "SIGTERM: finishing this step" in log.read_text() and "--resume" in log.read_text()
    assert "Traceback" not in log.read_text()

    process, log = started(*arguments, "--resume")
    assert first_step(process, log) == done + 1
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130, log.read_text()
    assert stopped_at(output, "SIGINT") > done


def test_the_first_signal_is_noted_and_the_second_acts() -> None:
    usual = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with noted_signals() as received:
            assert received == []
            signal.raise_signal(signal.SIGINT)
            assert received == ["SIGINT"]
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGTERM) is usual[0]
    finally:
        signal.signal(signal.SIGINT, usual[1])
