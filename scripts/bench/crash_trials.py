"""Kill runs, damage their checkpoints and fill their disk, and see that nothing is lost.

    python scripts/bench/crash_trials.py WORK [--kills 20] [--full 10] [--flips 50] [--seed 0]

Every run is a small one on the random model of tests/small.py, started by the command line in a process of its own.
The disks are mounts of tmpfs, so that part needs root on Linux and is left out elsewhere.
"""

from __future__ import annotations

import argparse
import importlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from small import small_config, write_data, write_model

from mm_spine import cli
from mm_spine.training.checkpoint import damage

LAYERS: Mapping[str, Any] = {"optim": {"steps": 6}, "checkpoint": {"every": 1}}


def preload() -> None:
    """Import once what the runs need, before their processes are forked."""
    for name in ("runs.run", "reporting.report", "reporting.changes", "reporting.compare"):
        importlib.import_module(f"mm_spine.{name}")
    for name in ("deepspeed", "matplotlib.pyplot", "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl"):
        importlib.import_module(name)


def start(config: Path, output: Path, log: Path, resume: bool = False) -> int:
    """Start the command line in a forked process and return the process id."""
    if pid := os.fork():
        return pid
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.argv = ["mm-spine", "adapt", str(config), "--output", str(output), *(["--resume"] if resume else [])]
    code = 1
    try:
        cli.main()
    except SystemExit as error:
        code = int(error.code or 0)
    finally:
        os._exit(code)


def wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def go_on(config: Path, output: Path, log: Path) -> int:
    """Resume the run, or start it where the first process had not yet claimed the folder."""
    return wait(start(config, output, log, resume=(output / "config.yaml").exists()))


def traces(output: Path) -> dict[str, bytes]:
    """The files that must be equal: steps, rollouts, evaluation, adapted weights; and whether there is a report."""
    patterns = ("steps.jsonl", "rollouts/*", "evaluation/*.jsonl", "adapted/*.safetensors", "adapted/*.json")
    found = {str(path.relative_to(output)): path.read_bytes() for name in patterns for path in output.glob(name)}
    return {**found, "report": str((output / "report.html").exists()).encode()}


def differing(whole: Mapping[str, bytes], output: Path) -> list[str]:
    found = traces(output)
    left_over = [str(path) for path in output.rglob(".*.tmp")] + [str(path) for path in output.rglob("*writing")]
    return [name for name in whole.keys() | found.keys() if whole.get(name) != found.get(name)] + left_over


def processor_seconds(pid: int) -> float:
    """Return the processor time that a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def kill(config: Path, work: Path, whole: Mapping[str, bytes], delay: float, trial: int) -> str:
    """Kill a run after `delay` seconds of processor time, resume it, and say how it went."""
    output, log = work / f"kill{trial}", work / f"kill{trial}.log"
    pid = start(config, output, log)
    # By processor time, so that the point in the run does not depend on what else the machine does.
    while processor_seconds(pid) < delay and "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]:
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    if wait(pid) != -signal.SIGKILL:
        shutil.rmtree(output)
        return kill(config, work, whole, delay * 0.95, trial)
    names = {path.name for path in output.glob("*")}
    where = "in the report" if "summary.json" in names else "after the adapted model" if "adapted" in names else ""
    where = where or ("while training" if "steps.jsonl" in names else "before the first step")
    code = go_on(config, output, log)
    odd = differing(whole, output)
    if code == 0 and not odd:
        shutil.rmtree(output)
        return f"equal (killed after {delay:.2f} s, {where})"
    return f"FAILED (killed after {delay:.2f} s, {where}): exit {code}, differs in {odd}"


def fill(config: Path, work: Path, whole: Mapping[str, bytes], size: int, trial: int) -> str:
    """Run on a disk of `size` bytes until it is full, enlarge it, resume, and say how it went."""
    disk, log = work / f"disk{trial}", work / f"disk{trial}.log"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)], check=True)
    try:
        code = wait(start(config, disk / "run", log))
        # Lines of the log and of transformers' progress bar are no message.
        lines = log.read_text().splitlines()
        said = [line for line in lines if line and not re.match(r"\d\d:\d\d:\d\d |Writing model shards", line)]
        subprocess.run(["mount", "-o", "remount,size=1g", str(disk)], check=True)
        again = go_on(config, disk / "run", log)
        odd = differing(whole, disk / "run")
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    sentence = said[-1] if said else ""
    good = code == 2 and len(said) == 1 and sentence.startswith("mm-spine: ") and again == 0 and not odd
    return f"{'equal' if good else 'FAILED'} ({size:,} bytes): exit {code}, {said}, then exit {again}, {odd}"


def flip(checkpoint: Path, times: int, draw: random.Random) -> dict[str, str]:
    """Flip single bits of each file; return how many of them were noticed, by file."""
    noticed = {}
    for path in sorted(checkpoint.iterdir()):
        whole = path.read_bytes()
        found = 0
        for _ in range(times):
            data, bit = bytearray(whole), draw.randrange(8 * len(whole))
            data[bit // 8] ^= 1 << bit % 8
            path.write_bytes(data)
            found += damage(checkpoint) is not None
        path.write_bytes(whole)
        noticed[path.name] = f"{found} of {times}"
    return noticed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    for name, default in (("kills", 20), ("full", 10), ("flips", 50), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    work, draw = given.work.resolve(), random.Random(given.seed)
    work.mkdir(parents=True)
    preload()
    place = {"benchmark": str(write_data(work / "data")), "model": {"path": str(write_model(work / "model"))}}
    config = work / "config.yaml"
    config.write_text(yaml.safe_dump(small_config(LAYERS, place).model_dump(mode="json")))

    _, status, used = os.wait4(start(config, work / "whole", work / "whole.log"), 0)
    assert status == 0, (work / "whole.log").read_text()
    seconds = used.ru_utime + used.ru_stime
    whole = traces(work / "whole")
    print(f"uninterrupted: {seconds:.1f} s of processor time", flush=True)
    newest = sorted((work / "whole" / "checkpoints").iterdir())[-1]
    print("flipped bits noticed:", flip(newest, given.flips, draw), flush=True)
    for trial in range(given.kills):
        # One point in each of equal parts of the run, so that every part of it is met.
        delay = seconds * (trial + draw.random()) / given.kills
        print(f"kill {trial}: {kill(config, work, whole, delay, trial)}", flush=True)
    if given.full and os.geteuid() == 0:
        # Space is needed for the files that stay and for a checkpoint beside the kept ones.
        most = sum(path.stat().st_size for path in (work / "whole").rglob("*") if path.is_file())
        for trial in range(given.full):
            size = int(most * (trial + draw.random()) / given.full) // 4096 * 4096 + 8192
            print(f"full {trial}: {fill(config, work, whole, size, trial)}", flush=True)


if __name__ == "__main__":
    main()
