"""A run on two hosts: two agents of torchrun on the loopback, each in a working folder of its own."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from small import BASE, small_config, write_data, write_model

from mm_spine import files
from mm_spine.runs.run import run

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "scripts" / "cluster"
TIMEOUT = 400
LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def on_two_hosts(place: Path, arguments: Sequence[str]) -> list[tuple[int, str]]:
    """Start an agent in each of two folders of `place`; return (exit code, what it printed) of both."""
    usual = {name: value for name, value in os.environ.items() if name not in LAUNCHED}
    cluster = {"NODES": "2", "PER_NODE": "1", "MASTER": "127.0.0.1", "PORT": free_port(), "JOB": place.name}
    ours = {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    agents = []
    for host in ("a", "b"):
        (place / host).mkdir(parents=True)
        command, env = [str(CLUSTER / "agent.sh"), *arguments], {**usual, **cluster, **ours}
        with (place / f"{host}.log").open("w") as log:
            agents.append(subprocess.Popen(command, cwd=place / host, env=env, stdout=log, stderr=subprocess.STDOUT))
    try:
        codes = [agent.wait(TIMEOUT) for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
    return [(code, (place / f"{host}.log").read_text()) for code, host in zip(codes, "ab", strict=True)]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, questions, and a configuration of two steps that names both by absolute paths."""
    folder = tmp_path_factory.mktemp("inputs")
    layers = {
        **BASE,
        "benchmark": str(write_data(folder / "data")),
        "model": {"path": str(write_model(folder / "model"))},
        "optim": {"steps": 2, "questions_per_step": 3, "lr": 0.0005},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(layers))
    return folder


@pytest.mark.slow
def test_two_agents_take_the_steps_of_one_process(inputs: Path, tmp_path: Path) -> None:
    ended = on_two_hosts(
        tmp_path / "hosts", [str(inputs / "config.yaml"), "--output", str(tmp_path / "shared" / "run")]
    )
    assert [code for code, _ in ended] == [0, 0], "\n".join(text[-3000:] for _, text in ended)
    config = small_config(yaml.safe_load((inputs / "config.yaml").read_text()))
    run(config, tmp_path / "one")
    two, one = (files.read_json_lines(tmp_path / name / "steps.jsonl") for name in ("shared/run", "one"))
    assert len(two) == len(one) == 2
    for found, expected in zip(two, one, strict=True):
        for name in ("rollouts_sampled", "tokens_sampled", "tokens_trained"):
            assert found[name] == expected[name]
        for name in ("loss", "grad_norm", "entropy_mean", "majority_share"):
            assert found[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-6)
    assert (tmp_path / "shared" / "run" / "adapted" / "model.safetensors").is_file()
    # The hosts' own folders stay empty, and nothing of the check is left in the shared one.
    assert not [path for host in "ab" for path in (tmp_path / "hosts" / host).iterdir()]
    assert not list((tmp_path / "shared").rglob(".*.tmp"))


@pytest.mark.slow
def test_a_folder_that_is_not_shared_is_refused_naming_it_and_the_host(inputs: Path, tmp_path: Path) -> None:
    ended = on_two_hosts(tmp_path, [str(inputs / "config.yaml"), "--output", "run"])
    assert all(code != 0 for code, _ in ended)
    # An agent whose rendezvous ends with the other host's says no exit code of its own process.
    assert any(re.search(r"exitcode\s*: 2", text) for _, text in ended), ended
    for _, text in ended:
        found = re.search(r"mm-spine: --output (\S+) on host (\S+) \(rank 1\) is not the folder (\S+) of rank 0", text)
        assert found is not None, text[-3000:]
        assert found[2] == socket.gethostname()
        assert {Path(found[1]), Path(found[3])} == {tmp_path / "a" / "run", tmp_path / "b" / "run"}
    # Neither host keeps anything of a refused run.
    assert not [path for host in "ab" for path in (tmp_path / host).iterdir()]


@pytest.mark.parametrize("script", sorted(path.name for path in CLUSTER.glob("*.sh")))
def test_the_scripts_are_shell_that_says_how_it_is_used(script: str) -> None:
    subprocess.run(["bash", "-n", str(CLUSTER / script)], check=True)
    assert os.access(CLUSTER / script, os.X_OK)
    assert re.search(r"^# usage: .*scripts/cluster/" + script, (CLUSTER / script).read_text(), re.MULTILINE)
