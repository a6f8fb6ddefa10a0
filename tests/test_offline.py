"""Private and safe by default: nothing is asked of the network, no code or pickle of a model folder is run."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from mm_spine.benchmarks.digits import MODEL_DIR
from mm_spine.policy.model import Policy
from mm_spine.runs.plan import load_config

DEMO = """
import json, os, socket, sys
from pathlib import Path

HERE = {None, "", "localhost", "0.0.0.0", "::1", "::", socket.gethostname()}
EVENTS = {"socket.connect": 1, "socket.sendto": 1, "socket.sendmsg": 1, "socket.getaddrinfo": 0,
          "socket.gethostbyname": 0, "socket.gethostbyaddr": 0}
reached = []

def guard(event, arguments):
    if event not in EVENTS:
        return
    to = arguments[EVENTS[event]]
    if isinstance(to, (str, bytes)) and EVENTS[event] == 1:
        return  # the path of a Unix socket
    host = to[0] if isinstance(to, tuple) else to
    host = host.decode() if isinstance(host, bytes) else host
    if host not in HERE and not str(host).startswith("127."):
        reached.append([event, str(host)])
        raise OSError(f"{event} to {host}: there is no network")

sys.addaudithook(guard)

from contextlib import contextmanager

from mm_spine import distributed
from mm_spine.commands.demo import run_method

stores, launch = [], distributed.launch_variables

@contextmanager
def recorded():
    with launch():
        stores.append(os.environ["MASTER_ADDR"])
        yield

distributed.launch_variables = recorded
output = Path(sys.argv[1])
for name in ("none", "spine"):
    run_method(name, output, 0, sys.argv[2:])

during = list(reached)
for attempt in (lambda: socket.getaddrinfo("example.org", 80), lambda: socket.socket().connect(("192.0.2.1", 80))):
    try:
        attempt()
    except OSError:
        pass
names = ("HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "VLLM_NO_USAGE_STATS", "GRADIO_ANALYTICS_ENABLED")
environment = {name: os.environ.get(name) for name in names}
print(json.dumps({"reached": during, "guarded": reached[len(during):], "environment": environment, "stores": stores}))
"""

OVERRIDES = (
    "limit=2",
    "threads=1",
    "optim.steps=1",
    "sampling.votes=2",
    "sampling.train_rollouts=2",
    "evaluation.samples=1",
    "evaluation.limit=1",
    "reporting.images=false",
)


class Demo(NamedTuple):
    folder: Path
    report: dict[str, Any]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """A tiny demo in a process of its own that may open no socket to another machine, and knows of no offline mode."""
    folder = tmp_path_factory.mktemp("demo")
    unset = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", *TELEMETRY_OFF}
    environment = {k: v for k, v in os.environ.items() if k not in unset and not k.endswith("_OFFLINE")}
    command = [sys.executable, "-c", DEMO, str(folder), *OVERRIDES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return Demo(folder, json.loads(done.stdout.splitlines()[-1]))


TELEMETRY_OFF = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
}


@pytest.mark.slow
def test_the_demo_reaches_for_no_other_machine(demo: Demo) -> None:
    assert demo.report["reached"] == [], "not even an attempt that a library would have swallowed"
    guarded = [["socket.getaddrinfo", "example.org"], ["socket.connect", "192.0.2.1"]]
    assert demo.report["guarded"] == guarded, "the guard itself works"
    assert demo.report["stores"] == ["127.0.0.1"], "the engine's store too stays on this machine"
    for method in ("none", "spine"):
        assert json.loads((demo.folder / method / "summary.json").read_text())["method"] == method


@pytest.mark.slow
def test_telemetry_is_off_in_the_process_and_its_children(demo: Demo) -> None:
    assert demo.report["environment"].items() >= TELEMETRY_OFF.items()


@pytest.mark.slow
def test_images_stay_out_of_the_run_folder(demo: Demo) -> None:
    assert load_config(str(demo.folder / "spine" / "config.yaml")).reporting.images is False
    magic = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"BM")
    files = [path for path in demo.folder.rglob("*") if path.is_file() and path.parent.name != "figures"]
    assert len(files) > 10
    assert not [path for path in files if path.read_bytes()[:4].startswith(magic)]


# What a model folder may not do


class _Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_neither_code_nor_pickles_of_a_model_folder_are_run(tmp_path: Path) -> None:
    folder, flag = tmp_path / "model", tmp_path / "ran"
    shutil.copytree(MODEL_DIR, folder)
    torch.save({"weights": _Touch(flag)}, folder / "pytorch_model.bin")
    (folder / "evil.py").write_text(f"import pathlib; pathlib.Path({str(flag)!r}).touch()\nclass Evil: pass\n")
    for name, keys in (
        ("config.json", ("AutoConfig", "AutoModelForImageTextToText")),
        ("processor_config.json", ("AutoProcessor", "AutoImageProcessor")),
        ("tokenizer_config.json", ("AutoTokenizer",)),
    ):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**content, "auto_map": dict.fromkeys(keys, "evil.Evil")}))
    policy = Policy.load(folder)
    assert type(policy.model).__module__.startswith("transformers.")
    assert type(policy.processor).__module__.startswith("transformers.")
    assert not flag.exists()


# What the source may not say

FORBIDDEN = {
    "torch.load": "pickle",
    "pickle.load": "pickle",
    "pickle.loads": "pickle",
    "joblib.load": "pickle",
    "pandas.read_pickle": "pickle",
    "yaml.load": "objects in YAML",
    "yaml.unsafe_load": "objects in YAML",
    "yaml.full_load": "objects in YAML",
    "eval": "code",
    "exec": "code",
    "os.system": "a shell",
}


def calls(root: Path) -> Iterator[tuple[str, ast.Call]]:
    """(where, call) of every call in the package's source."""
    for folder in ("mm_spine", "processors", "benchmarks"):
        for path in sorted((root / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call):
                    yield f"{path.relative_to(root)}:{node.lineno}", node


def test_nothing_in_the_source_unpickles_or_evaluates(repository: Path) -> None:
    found = [(where, ast.unparse(call.func)) for where, call in calls(repository)]
    assert len(found) > 1000
    forbidden = [(where.partition(":")[0], name) for where, name in found if name in FORBIDDEN]
    # The file that a user names by --plugin is run, as its name says, and nothing else.
    assert forbidden == [("mm_spine/config/plugins.py", "exec")]


def test_remote_code_is_never_trusted_and_no_shell_is_used(repository: Path) -> None:
    given = [
        (where, keyword.arg, ast.unparse(keyword.value))
        for where, call in calls(repository)
        for keyword in call.keywords
        if keyword.arg in ("trust_remote_code", "shell", "allow_pickle")
    ]
    assert {(name, value) for _, name, value in given} == {("trust_remote_code", "False")}, given
    others = [path for folder in ("scripts", "configs") for path in (repository / folder).iterdir() if path.is_file()]
    assert others
    for path in others:
        assert not re.search(r"trust[-_]remote[-_]code\W+true", path.read_text(), re.IGNORECASE), path
