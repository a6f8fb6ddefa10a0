"""Collect the wheels that a bare GPU machine lacks, and install them there without a network.

Standard library only: `install` runs before anything else is there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 60 * 2**20
"""Most bytes of all wheels together."""

GLIBC = (39, 35, 34, 31, 28, 27, 26, 24, 17, 12, 5)
"""Versions 2.N of the C library whose wheels are asked for: pip takes the names of platforms literally."""

TORCHVISION = {"2.11": "0.26.0", "2.12": "0.27.0", "2.13": "0.28.0"}
"""torch -> the torchvision that was built for it."""


class Group(NamedTuple):
    """Packages that are of use only together, without those that torch, transformers or scikit-learn bring."""

    name: str
    packages: tuple[str, ...]
    serves: str


GROUPS = (
    Group(
        "needed",
        (
            *("deepspeed", "hjson", "msgpack", "py-cpuinfo", "einops", "ninja", "torchvision", "qwen-vl-utils"),
            *("requests", "urllib3", "charset-normalizer", "math-verify", "latex2sympy2-extended"),
            *("antlr4-python3-runtime", "pydantic", "pydantic-core", "annotated-types", "typing-inspection"),
            *("rich", "markdown-it-py", "mdurl", "pygments", "typer", "shellingham"),
        ),
        "all phases",
    ),
    Group(
        "report",
        (
            *("pyarrow", "matplotlib", "contourpy", "kiwisolver", "fonttools", "cycler", "pyparsing"),
            *("python-dateutil", "six"),
        ),
        "`digits` with its report, as `mm-spine adapt` runs it; without it the library runs the same steps",
    ),
    Group(
        "trl",
        (
            *("trl", "datasets", "dill", "multiprocess", "xxhash", "pandas", "python-dateutil", "six", "pyarrow"),
            *("aiohttp", "aiohappyeyeballs", "aiosignal", "frozenlist", "multidict", "propcache", "yarl", "attrs"),
        ),
        "TRL's GRPOTrainer beside ours",
    ),
)


class Refused(Exception):
    """One sentence: what was found and what to do."""


def pins(torch: str) -> dict[str, str]:
    """Return package -> version, as constraints.txt has it, and the torchvision of this torch."""
    if torch not in TORCHVISION:
        raise Refused(f"--torch {torch}: one of {', '.join(TORCHVISION)}")
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    found = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    return found | {"torchvision": TORCHVISION[torch]}


def chosen(groups: Sequence[Group], have: Collection[str], sizes: Mapping[str, int]) -> tuple[list[str], list[Group]]:
    """Return the packages to carry and the groups that are left out because they do not fit.

    `have` are those that the machine holds, `sizes` the bytes of the others' wheels. Raises Refused where the first
    group does not fit.
    """
    taken: list[str] = []
    left_out: list[Group] = []
    for group in groups:
        wanted = [*taken, *(name for name in group.packages if name not in have and name not in taken)]
        total = sum(sizes[name] for name in wanted)
        if total <= LIMIT:
            taken = wanted
        elif group is groups[0]:
            largest = sorted(wanted, key=lambda name: -sizes[name])[:3]
            raise Refused(
                f"{_mib(total)} of wheels, and the limit is {_mib(LIMIT)}; largest: "
                f"{', '.join(f'{name} {_mib(sizes[name])}' for name in largest)}; --have what the machine holds"
            )
        else:
            left_out.append(group)
    return taken, left_out


def _mib(size: int) -> str:
    return f"{size / 2**20:.2f} MiB"


def fetch(folder: Path, python: str, torch: str, have: Collection[str], say: Callable[[str], None] = print) -> None:
    """Download or build the wheels into `folder`, which must be empty or not there; print the list and its sizes."""
    if folder.is_dir() and any(folder.iterdir()):
        raise Refused(f"{folder} is not empty: name another folder for the wheels")
    everything = folder / "all"
    everything.mkdir(parents=True)
    versions, found = pins(torch), dict[str, Path]()
    for name in dict.fromkeys(name for group in GROUPS for name in group.packages if name not in have):
        get = _deepspeed if name == "deepspeed" else _download
        found[name] = get(f"{name}=={versions[name]}", everything, python)
    sizes = {name: path.stat().st_size for name, path in found.items()}
    taken, left_out = chosen(GROUPS, have, sizes)
    for name in taken:
        found[name].rename(folder / found[name].name)
        say(f"{_mib(sizes[name]):>10}  {found[name].name}")
    say(f"{_mib(sum(sizes[name] for name in taken)):>10}  in {len(taken)} wheels, of at most {_mib(LIMIT)}")
    for group in left_out:
        lacking = [name for name in group.packages if name in found and name not in taken]
        more = _mib(sum(sizes[name] for name in lacking))
        say(f"left out: {more} of {', '.join(lacking)} ({group.serves}); --have what the machine holds")
    shutil.rmtree(everything)


def _download(pinned: str, folder: Path, python: str) -> Path:
    """Download one wheel for the target's Python and for x86-64 Linux; return its path."""
    platforms = [*(f"--platform=manylinux_2_{n}_x86_64" for n in GLIBC), "--platform=manylinux2014_x86_64"]
    target = [f"--python-version={python}", "--implementation=cp", *platforms]
    return _made_by(folder, pinned, ["download", "--no-deps", "--only-binary=:all:", *target, "-d"])


def _deepspeed(pinned: str, folder: Path, python: str) -> Path:
    """Build DeepSpeed's wheel without its compiled operators, which the training here does not use."""
    wheel = _made_by(folder, pinned, ["wheel", "--no-deps", "--no-build-isolation", "--no-binary=deepspeed", "-w"])
    if not wheel.name.endswith("-none-any.whl"):
        raise Refused(f"{wheel.name}: DeepSpeed's wheel holds compiled parts; unset DS_BUILD_OPS and its like")
    return wheel


def _made_by(folder: Path, pinned: str, arguments: Sequence[str]) -> Path:
    """Run pip with `arguments` and a folder of its own; return the one wheel that it left there, moved to `folder`."""
    own = folder / "one"
    own.mkdir()
    command = [sys.executable, "-m", "pip", *arguments, str(own), "-q", "--disable-pip-version-check", pinned]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"DS_BUILD_OPS": "0"})
    made = list(own.glob("*.whl"))
    if done.returncode or len(made) != 1:
        reason = (done.stderr.strip() or done.stdout.strip() or "pip left no wheel").splitlines()[-1]
        raise Refused(f"{pinned}: {reason}")
    path = made[0].rename(folder / made[0].name)
    own.rmdir()
    return path


def install(wheels: Path, target: Path, seconds: float) -> list[str]:
    """Install the wheels of a folder into `target`, without index and dependencies; return their names."""
    found = sorted(wheels.glob("*.whl"))
    if not found:
        raise Refused(f"--wheels {wheels}: no wheel there; scripts/gpu_check.sh --fetch {wheels} collects them")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir"]
    command = [*pip, "--disable-pip-version-check", "--target", str(target), *map(str, found)]
    # A configuration of pip, of a company's index say, has no part in this.
    environment = os.environ | {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise Refused(f"--wheels {wheels}: not installed within {seconds:.0f} s") from None
    if done.returncode:
        raise Refused(f"--wheels {wheels}: {(done.stderr.strip() or 'pip failed').splitlines()[-1]}")
    return [path.name for path in found]
