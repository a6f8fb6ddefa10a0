"""One process and two gloo processes are the same step: gradients, weights, reports, and a whole run's files."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from ranks import CASES, ROWS, STAGES, main, save_rollouts
from small import small_config, write_data, write_model

from mm_spine import distributed, files
from mm_spine.config import ConfigError
from mm_spine.files import rollout_table
from mm_spine.policy.errors import NotFinite
from mm_spine.runs.plan import check
from mm_spine.runs.run import run

pytestmark = pytest.mark.slow

TIMEOUT = 300
COUNTED = ("step", "rollouts_sampled", "tokens_sampled", "tokens_saved", "tokens_trained", "cache_hits")
ROUNDED = {
    "lr", "loss", "loss_policy", "loss_band", "loss_kl", "grad_norm", "majority_share", "margin", "unparsed",
    "unanimous", "length_mean", "entropy_mean", "entropy_forks", "band_low", "band_high", "share_below", "share_above",
    "selected_share", "ratio_clipped",
}  # fmt: skip


def launch(folder: Path, processes: int, script: str = "ranks.py") -> int:
    """The exit code of the worker under torchrun; a hang is a failure that says how far it came."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    usual = {k: v for k, v in os.environ.items() if k not in {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT"}}
    worker = Path(__file__).with_name(script)
    with (folder / "log").open("w") as log:
        try:
            done = subprocess.run(
                [sys.executable, *launcher, str(worker), str(folder)],
                env={**usual, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(worker.parents[1])},
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=TIMEOUT,
            )
        except subprocess.TimeoutExpired:
            pytest.fail(f"{processes} processes hang after {sorted(path.name for path in folder.iterdir())}")
    return done.returncode


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Number of processes -> the folder of what they did with the same rollouts; one process is this one."""
    folders = {n: tmp_path_factory.mktemp(f"ranks{n}") for n in (1, 2)}
    save_rollouts(folders[1] / "rollouts.pt")
    (folders[2] / "rollouts.pt").write_bytes((folders[1] / "rollouts.pt").read_bytes())
    shared = tmp_path_factory.mktemp("inputs")
    layers = {
        "benchmark": str(write_data(shared / "data")),
        "model": {"path": str(write_model(shared / "model"))},
        "engine": {"zero_stage": 3, "token_budget": 200},
        # All questions in every step: their votes are compared in the second one, which ends the run.
        "optim": {"questions_per_step": 6, "steps": 3},
        "guard": {"settle": 0.99, "settle_over": 5},
        "sampling": {"votes": {"max": 9, "stop": "confident", "level": 0.5}, "tree": {"forks": 1, "branches": 1}},
        "checkpoint": {"every": 2},
    }
    (shared / "data" / "questions5.png").write_bytes(b"no image")
    (folders[2] / "run.json").write_text(json.dumps(layers))
    main(folders[1])
    run(small_config(layers), folders[1] / "run")
    assert launch(folders[2], 2) == 0, (folders[2] / "log").read_text()[-3000:]
    return folders


def load(outcomes: dict[int, Path], processes: int, case: str, stage: int) -> dict[str, Any]:
    return torch.load(outcomes[processes] / f"{case}_{stage}.pt", weights_only=False)


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """||a - b|| <= 1e-5 ||b|| for every tensor, and none silently zero."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        norm = float(tensor.norm())
        assert norm > 0, f"{name} is zero"
        assert float((found[name] - tensor).norm()) <= 1e-5 * norm, name


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("processes", [1, 2])
def test_gradients_and_weights_are_those_of_one_process_without_zero(
    outcomes: dict[int, Path], processes: int, case: str, stage: int
) -> None:
    expected, found = load(outcomes, 1, case, 0), load(outcomes, processes, case, stage)
    assert len(found["gradients"]) == len(expected["gradients"]) == (2 if case == "epochs" else 1)
    assert_close(found["gradients"][0], expected["gradients"][0])
    assert_close(found["weights"], expected["weights"])


@pytest.mark.parametrize("name", ROWS)
def test_two_processes_take_the_step_of_every_method_that_one_takes(outcomes: dict[int, Path], name: str) -> None:
    expected, found = (load(outcomes, processes, f"row_{name}", 0) for processes in (1, 2))
    assert_reports_agree(found["report"], expected["report"])
    assert len(found["gradients"]) == len(expected["gradients"]) == 1
    mine, theirs = (torch.cat([g.flatten() for g in each["gradients"][0].values()]) for each in (found, expected))
    assert float(theirs.norm()) > 0
    assert float((mine - theirs).norm()) <= 1e-5 * float(theirs.norm())


def test_the_step_is_large_enough_to_show(outcomes: dict[int, Path]) -> None:
    """The update is far above the tolerance of the comparison of weights."""
    from small import digit_policy

    start, after = digit_policy().weights(), load(outcomes, 1, "uneven", 0)["weights"]
    assert all(float((after[name] - start[name]).norm()) > 1e-4 * float(start[name].norm()) for name in start)


def test_the_micro_batches_do_not_change_the_step(outcomes: dict[int, Path]) -> None:
    """Seven groups alone, four on one rank and three on the other, or all at once: one gradient."""
    together = torch.load(outcomes[1] / "epochs_0.pt", weights_only=False)["gradients"][0]
    apart = torch.load(outcomes[2] / "uneven_3.pt", weights_only=False)["gradients"][0]
    assert_close(apart, together)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("case", CASES)
def test_reports_agree(outcomes: dict[int, Path], case: str, stage: int) -> None:
    """Spare micro-steps count for nothing."""
    assert_reports_agree(load(outcomes, 2, case, stage)["report"], load(outcomes, 1, case, 0)["report"])


def assert_reports_agree(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Counts equal, figures up to rounding."""
    assert {name: found[name] for name in COUNTED} == {name: expected[name] for name in COUNTED}
    for name in ROUNDED:
        if expected[name] is None:
            assert found[name] is None, name
        else:
            assert found[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-6), name
    assert found["parity_max"] < 1e-4


@pytest.mark.parametrize("stage", STAGES[1:])
def test_two_processes_resume_to_the_bit(outcomes: dict[int, Path], stage: int) -> None:
    found = torch.load(outcomes[2] / f"resume_{stage}.pt", weights_only=False)
    assert all(torch.equal(found["resumed"][name], weight) for name, weight in found["whole"].items())
    assert not all(torch.equal(found["stopped"][name], weight) for name, weight in found["whole"].items())


def test_a_whole_run_of_two_processes_writes_one_set_of_files(outcomes: dict[int, Path]) -> None:
    one, two = (outcomes[n] / "run" for n in (1, 2))
    names = [
        {str(path.relative_to(run)) for path in run.rglob("*") if "checkpoints" not in path.parts} for run in (one, two)
    ]
    assert names[0] == names[1]
    assert (two / "checkpoints" / "step_000002" / "state.json").is_file()
    assert not list(two.rglob("*.writing")) and not list(two.rglob("*.tmp"))


def test_a_whole_run_of_two_processes_takes_the_same_steps(outcomes: dict[int, Path]) -> None:
    one, two = (files.read_json_lines(outcomes[n] / "run" / "steps.jsonl") for n in (1, 2))
    assert len(two) == len(one) == 2
    for found, expected in zip(two, one, strict=True):
        assert_reports_agree(found, expected)


def test_a_whole_run_of_two_processes_draws_the_same_trees_in_the_same_order(outcomes: dict[int, Path]) -> None:
    """One question cannot be asked; the others' votes stop early."""
    names = ("question_id", "index", "token_ids", "parent", "fork_at")
    drawn = [
        [
            [row[name] for name in names]
            for path in sorted((outcomes[n] / "run" / "rollouts").glob("*.parquet"))
            for row in rollout_table.read_rollout_table(path).to_pylist()
        ]
        for n in (1, 2)
    ]
    assert drawn[0] == drawn[1] and any(row[3] is not None for row in drawn[0])
    steps = files.read_json_lines(outcomes[2] / "run" / "steps.jsonl")
    assert sum(row["rollouts_sampled"] for row in steps) < 9 * 5 * 2 and all(row["tokens_saved"] > 0 for row in steps)


def test_a_whole_run_of_two_processes_says_the_same(outcomes: dict[int, Path]) -> None:
    one, two = (json.loads((outcomes[n] / "run" / "summary.json").read_text()) for n in (1, 2))
    for name in ("n_questions", "steps", "tokens", "skipped", "trainable_parameters", "fingerprint"):
        assert two[name] == one[name], name
    for name in ("greedy", "pass_at_1", "maj_at_n", "mean_length", "unparsed", "mean_entropy"):
        assert two["before"][name] == pytest.approx(one["before"][name], rel=1e-4), name
    assert list(two["skipped"]) == ["questions-6"] and two["tower_checksum_unchanged"]
    assert two["image_cache"]["tower_runs"] == one["image_cache"]["tower_runs"]
    items = [files.read_json_lines(outcomes[n] / "run" / "evaluation" / "after.jsonl") for n in (1, 2)]
    asked = [[(item["split"], item["id"]) for item in each] for each in items]
    assert asked[0] == asked[1] and len(asked[0]) == 5 + 2


def test_a_whole_run_of_two_processes_settles_by_the_same_votes(outcomes: dict[int, Path]) -> None:
    one, two = (outcomes[n] / "run" for n in (1, 2))
    assert (one / "votes.jsonl").read_bytes() == (two / "votes.jsonl").read_bytes()
    ends = [json.loads((run / "summary.json").read_text()) for run in (one, two)]
    assert [end["stopped_by"] for end in ends] == ["settled"] * 2
    assert ends[0]["settled"] == ends[1]["settled"] and ends[0]["settled"]["compared"] == 5


def test_a_whole_run_of_two_processes_saves_whole_weights(outcomes: dict[int, Path]) -> None:
    from safetensors.torch import load_file

    one, two = (load_file(outcomes[n] / "run" / "adapted" / "model.safetensors") for n in (1, 2))
    assert one.keys() == two.keys()
    for name, weight in one.items():
        assert two[name].shape == weight.shape
        assert float((two[name] - weight).norm()) <= 1e-2 * float(weight.norm()), name


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of two processes of which the second one met numbers that are not finite in step 1."""
    folder, shared = tmp_path_factory.mktemp("broken"), tmp_path_factory.mktemp("inputs")
    layers = {
        "benchmark": str(write_data(shared / "data")),
        "model": {"path": str(write_model(shared / "model"))},
        "engine": {"zero_stage": 3},
        "checkpoint": {"every": 1},
    }
    config = small_config({"method": {"unanimous": "regularise", "kl": "none"}}, layers)
    (folder / "run.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_unset=True)))
    code = launch(folder, 2, "broken_ranks.py")
    assert code != 0 and (folder / "code_1.json").exists(), (folder / "log").read_text()[-3000:]
    return folder


SAID = {
    "log_probs": r"step 1: q\d: the log-probs of its responses are not finite: no weight was moved by this step; ",
    "gradients": r"step 1: the gradient is not finite: no weight was moved by this step; ",
    "draws": r"step 1: q\d: the policy's log-probs are not finite while it samples rollout \d: ",
    "scores": r"step 1: q\d: the log-probs of its responses are not finite: the weights are broken; ",
}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("fault", SAID)
def test_numbers_of_one_rank_that_are_not_finite_stop_all_ranks(broken: Path, fault: str, stage: int) -> None:
    first, second = (json.loads((broken / f"{fault}_{stage}_{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert re.match(SAID[fault], first["said"])
    assert first["moves"] == first["steps"] == 1 and first["unmoved"]
    assert first["checkpoints"] == ["step_000001"] and first["resumed"]


def test_a_run_that_one_rank_stops_ends_with_one_sentence_and_code_2_on_all(broken: Path) -> None:
    assert [json.loads((broken / f"code_{rank}.json").read_text()) for rank in (0, 1)] == [2, 2]
    assert [path.name for path in (broken / "run" / "checkpoints").iterdir()] == ["step_000001"]
    assert not (broken / "run" / "adapted").exists() and not (broken / "run" / "summary.json").exists()
    log = (broken / "log").read_text()
    assert re.search(r"step 1: questions-\d: the log-probs of its", log)
    assert "Traceback" not in log.partition("ChildFailedError")[0].rpartition("step 1: questions")[0]


def test_what_stops_one_rank_stops_this_one_too(monkeypatch: pytest.MonkeyPatch) -> None:
    assert distributed.on_all_or_none(lambda: 5, NotFinite) == 5
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "gather", lambda share: [*share, NotFinite("q1")])
    with pytest.raises(NotFinite, match="q1"):
        distributed.on_all_or_none(lambda: 5, NotFinite)
    monkeypatch.setattr(distributed, "gather", lambda share: [*share, None])
    assert distributed.on_all_or_none(lambda: 5, NotFinite) == 5


def test_shares_are_put_back_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    items = list("abcdefg")
    for size in (1, 2, 3, 8):
        shares = []
        monkeypatch.setattr(distributed, "world_size", lambda size=size: size)
        for rank in range(size):
            monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
            shares.append(distributed.mine(items))

        def fill(into: list[Any], share: Any, shares: Any = shares) -> None:
            into[:] = shares

        monkeypatch.setattr(distributed.dist, "all_gather_object", fill)
        assert distributed.gather(shares[0]) == items


def test_one_question_at_a_time_runs_on_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="scope=question runs on one process"):
        check(small_config({"benchmark": "digits", "scope": "question"}))


def test_alone_every_collective_is_the_identity() -> None:
    assert distributed.world_size() == 1 and distributed.rank() == 0
    assert distributed.mine([1, 2, 3]) == distributed.gather([1, 2, 3]) == [1, 2, 3]
    assert distributed.same_on_all("x") == "x"
    distributed.barrier()
