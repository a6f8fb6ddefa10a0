"""Engines of vLLM: their lifetime, their processes, their failures, and whole runs with them."""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import weakref
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torch.distributed as dist
from small import small_config, write_data, write_model
from tiny import tiny_policy
from vllm_policies import EXACT, disturb, gap, ids, mixed, needs_vllm, sample, sampler_of, sync

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "scripts" / "bench"))
from vllm_standin import Response, StandIn

from mm_spine.config import ModelConfig, VLLMConfig
from mm_spine.policy.model import Policy
from mm_spine.runs.listeners.listener import Listener, Step
from mm_spine.runs.run import run
from mm_spine.sampling.vllm import engine as vllm_engine
from mm_spine.sampling.vllm import environment, transfer
from mm_spine.sampling.vllm import sampler as vllm_sampler
from mm_spine.sampling.vllm.engine import SamplerDied
from mm_spine.sampling.vllm.sampler import VLLMSampler
from mm_spine.training.checkpoint import newest_checkpoint

# Every engine takes seconds to start.
pytestmark = pytest.mark.slow


@needs_vllm
def test_an_engine_goes_with_its_policy_and_leaves_the_others(policy: Policy) -> None:
    questions = mixed(3)
    other = tiny_policy(2)
    sample(sampler_of(policy), questions)
    sample(sampler_of(other), questions)
    engine, folder = weakref.ref(vllm_sampler._engines[other]), Path(vllm_sampler._engines[other]._folder.name)
    alone = dist.is_initialized()
    del other
    gc.collect()
    assert engine() is None and not folder.exists()
    assert dist.is_initialized() == alone
    assert gc.get_freeze_count() == 0
    disturb(policy, 0)
    sampler = sampler_of(policy)
    assert gap(sampler, questions, sample(sampler, questions)) < EXACT


def engine_on_a_card(monkeypatch: pytest.MonkeyPatch) -> tuple[vllm_engine.VLLMEngine, list[str]]:
    """An engine on the stand-in of vLLM that takes itself to be on a card; and what it hears, in order."""
    standin = StandIn()
    heard = standin.heard
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: heard.append("empty_cache"))
    engine = vllm_engine.VLLMEngine.__new__(vllm_engine.VLLMEngine)
    engine._llm, engine.cuda, engine._asleep, engine._workers = standin, True, False, []
    engine.own_process, engine.stale, engine.version, engine._given = False, True, 0, set()
    return engine, heard


TAKEN = ["load_weights", "reset_prefix_cache", "reset_mm_cache", "reset_encoder_cache"]


@pytest.mark.parametrize("train", ["full", "lora"])
def test_on_a_card_an_engine_is_awake_only_inside(train: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the trainer's allocator keeps is given back before vLLM asks for its memory; keys and values come last.

    Where training replaces all weights the engine drops them and takes them over again each time, else it keeps them on
    the host.
    """
    pytest.importorskip("vllm")
    policy = tiny_policy(1, config=ModelConfig(train=train))
    engine, heard = engine_on_a_card(monkeypatch)
    for _ in range(2):
        with engine.ready(policy):
            engine.enqueue([], [])
    again, level = (TAKEN, 2) if train == "full" else ([], 1)
    assert heard[: len(TAKEN) + 1] == [*TAKEN, f"sleep {level}"]
    assert heard[len(TAKEN) + 1 :] == ["empty_cache", "wake_up weights", *again, "wake_up kv_cache", f"sleep {level}"]
    heard.clear()
    engine.stale = True
    with engine.ready(policy):
        pass
    assert heard == ["empty_cache", "wake_up weights", *TAKEN, "wake_up kv_cache", f"sleep {level}"]


def test_requests_that_an_error_leaves_behind_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, _ = engine_on_a_card(monkeypatch)
    engine.stale = False
    policy = tiny_policy(1)
    long, short = Response((1,) * 50, False), Response((2,), True)
    with pytest.raises(KeyError), engine.ready(policy):
        engine.enqueue([{"prompt_token_ids": [1, 2]}] * 2, [long, short])
        assert [number for number, _ in engine.finished()] == [1]
        raise KeyError
    assert not engine._llm.has_unfinished_requests()
    with engine.ready(policy):
        engine.enqueue([{"prompt_token_ids": [1, 2]}], [short])
        assert [number for number, _ in engine.finished()] == [2]
        with pytest.raises(SamplerDied, match="requests were lost"):
            engine.finished()


def test_engines_beside_ranks_know_nothing_of_their_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in environment.LAUNCHED:
        monkeypatch.setenv(name, "1")
    with environment.starting_environment(tmp_path, torch.device("cpu"), own_process=True):
        assert not set(environment.LAUNCHED) & set(os.environ)
        assert os.environ["OMP_NUM_THREADS"] == str(torch.get_num_threads())
    assert set(environment.LAUNCHED) <= set(os.environ)


# --- whole runs -------------------------------------------------------------------------------------------------------


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """Of a small run that samples with vLLM."""
    return {
        "benchmark": str(write_data(tmp_path / "data")),
        "model": {"path": str(write_model(tmp_path / "model"))},
        "sampling": {"backend": "vllm", "vllm": {"max_rows": 32}},
    }


@needs_vllm
def test_a_run_samples_with_vllm_and_adapts(settings: dict[str, Any], tmp_path: Path) -> None:
    summary = run(small_config(settings), tmp_path / "out")
    steps = [json.loads(line) for line in (tmp_path / "out" / "steps.jsonl").read_text().splitlines()]
    assert summary is not None and summary["stopped_by"] == "steps" and len(steps) == 3
    assert all(step["parity_max"] < 1e-3 and step["grad_norm"] > 0 and step["tokens_trained"] for step in steps)
    assert (tmp_path / "out" / "adapted" / "model.safetensors").is_file()


def workers() -> list[psutil.Process]:
    """vLLM's processes that hold a model."""
    return [p for p in psutil.Process().children(recursive=True) if p.name().startswith("VLLM::Worker")]


class Deadly(Listener):
    """Interrupts the engine after the first step, as a Ctrl-C reaches it, and kills it after the third."""

    def step(self, step: Step) -> None:
        for worker in workers() if step.report.step in (0, 2) else ():
            worker.send_signal(signal.SIGKILL if step.report.step else signal.SIGINT)


HERE = {"sampling": {"vllm": {"own_process": False}}}


@needs_vllm
@pytest.mark.slow
def test_a_run_whose_engine_was_killed_stops_with_an_error_and_resumes(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    settings["sampling"]["vllm"]["own_process"] = True
    config = small_config(settings, {"optim": {"steps": 4}, "checkpoint": {"every": 1}})
    out = tmp_path / "out"
    with pytest.raises(SamplerDied, match="VllmWorker-0 ended with code -9.*--resume"):
        run(config, out, listener=Deadly())
    kept = newest_checkpoint(out / "checkpoints")
    assert kept is not None and kept.name == "step_000003"
    assert not (out / "summary.json").exists()
    # With the engine in this process, which spares a start.
    config = config.model_copy(update={"sampling": small_config(settings, HERE).sampling})
    saved = (out / "config.yaml").read_text()
    (out / "config.yaml").write_text(saved.replace("own_process: true", "own_process: false"))
    summary = run(config, out, resume=True)
    steps = [json.loads(line) for line in (out / "steps.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == list(range(4))
    assert all(step["parity_max"] < 1e-3 for step in steps)
    assert summary is not None and summary["stopped_by"] == "steps"
    gc.collect()
    assert not workers()


@needs_vllm
@pytest.mark.slow
def test_an_engine_in_its_own_process_draws_the_same(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights arrive in buckets that cut tensors, and parts of what vLLM joins, anywhere."""
    monkeypatch.setattr(transfer, "BUCKET", 50_001)
    questions, sampler = mixed(), sampler_of(policy)
    here = sample(sampler, questions)
    other = tiny_policy(1)
    apart = VLLMSampler(other, sampler.decoding, VLLMConfig(max_rows=64, own_process=True))
    assert ids(sample(apart, questions)) == ids(here)
    disturb(other, 0)
    sync(apart)
    assert gap(apart, questions, sample(apart, questions)) < EXACT


@needs_vllm
def test_any_failure_of_the_engine_ends_the_run_with_one_error(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = sampler_of(policy)
    sample(sampler, mixed(1))

    def broken(*args: Any, **kwargs: Any) -> None:
        raise MemoryError("no room\nand more")

    monkeypatch.setattr(vllm_sampler._engines[policy]._llm, "enqueue", broken)
    with pytest.raises(SamplerDied, match=r"vLLM failed while sampling \(MemoryError: no room\).*--resume"):
        sample(sampler, mixed(1))
