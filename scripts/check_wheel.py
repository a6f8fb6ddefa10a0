"""Build the wheel offline, from a copy of the checkout, and check its files and its metadata.

    python scripts/check_wheel.py [--demo] [--keep FOLDER]

Exits with a message that names what is missing or does not belong there. With --demo, the wheel is unpacked and a small
`mm-spine demo` runs from it in an empty folder, with this environment's packages (a minute). --keep copies the wheel.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from email.message import Message
from email.parser import BytesParser
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
LINKED = ("processors", "benchmarks", "configs")

SMALL_DEMO = (
    *("limit=2", "threads=1", "optim.steps=1", "sampling.votes=2", "sampling.train_rollouts=2"),
    *("evaluation.samples=1", "evaluation.limit=1"),
)


def checkout_files() -> list[str]:
    """Return the names of the files under version control or about to be, relative to the checkout."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = [name for name in listed.split("\0") if name]
    return [name for name in names if (ROOT / name).is_file() and not (ROOT / name).is_symlink()]


def build(names: Sequence[str], folder: Path) -> Path:
    """Build the wheel from a copy of the files `names` under `folder`; return its path."""
    source, out = folder / "source", folder / "wheel"
    for name in names:
        copy = source / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, copy)
    for name in LINKED:
        (source / "mm_spine" / name).symlink_to(Path("..") / name)
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "--no-index"]
    subprocess.run([*pip, "-w", str(out), "."], cwd=source, check=True)
    (built,) = out.glob("*.whl")
    return built


def expected(names: Sequence[str]) -> set[str]:
    """Return the names that the wheel must hold: every file of the package's folders in the checkout."""
    tops = {"mm_spine": "mm_spine", **{name: f"mm_spine/{name}" for name in LINKED}}
    split = (name.partition("/") for name in names)
    return {f"{tops[top]}/{rest}" for top, _, rest in split if top in tops}


def file_problems(held: Sequence[str], names: Sequence[str]) -> Iterator[str]:
    """Yield a sentence for each file that the wheel lacks, holds twice, or should not hold."""
    tops = {name.partition("/")[0] for name in held if ".dist-info/" not in name}
    yield from (f"{top}: a top-level name beside mm_spine" for top in sorted(tops - {"mm_spine"}))
    yield from (f"{name}: missing from the wheel" for name in sorted(expected(names) - set(held)))
    yield from (f"{name}: in the wheel more than once" for name in sorted({n for n in held if held.count(n) > 1}))
    if not any(name.endswith("licenses/LICENSE") for name in held):
        yield "LICENSE: missing from the wheel"


def metadata_problems(metadata: Message, entry_points: str, project: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for each field of the metadata that is not what `project`, of pyproject.toml, says."""
    single = {
        "Name": project["name"],
        "Version": project["version"],
        "Summary": project["description"],
        "Requires-Python": project["requires-python"],
        "License-Expression": project["license"],
        "Description-Content-Type": "text/markdown",
    }
    for field, wanted in single.items():
        if metadata[field] != wanted:
            yield f"METADATA: {field} is {metadata[field]!r}, wanted {wanted!r}"
    if not str(metadata.get_payload()).lstrip().startswith("# "):
        yield "METADATA: the description is not the README"
    extras = set(metadata.get_all("Provides-Extra") or ())
    if differing := extras ^ set(project["optional-dependencies"]):
        yield f"METADATA: extras differ in {', '.join(sorted(differing))}"
    requirements = [Requirement(line) for line in metadata.get_all("Requires-Dist") or ()]
    # A package index refuses a wheel that asks for an address.
    yield from (f"METADATA: {requirement} asks for an address" for requirement in requirements if requirement.url)
    base = {str(Requirement(line)) for line in project["dependencies"]}
    if base - {str(requirement) for requirement in requirements}:
        yield "METADATA: a dependency of pyproject.toml is missing"
    for line in ("mm-spine = mm_spine.cli:main", "mm_spine = mm_spine.integrations:manifest"):
        if line not in entry_points.splitlines():
            yield f"entry_points.txt: {line} is missing"


def problems_of(wheel: Path, names: Sequence[str]) -> list[str]:
    """Return a sentence for everything that is wrong with the wheel."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    with zipfile.ZipFile(wheel) as archive:
        held = archive.namelist()
        (info,) = (name.removesuffix("METADATA") for name in held if name.endswith(".dist-info/METADATA"))
        metadata = BytesParser().parsebytes(archive.read(f"{info}METADATA"))
        entry_points = archive.read(f"{info}entry_points.txt").decode()
    return [*file_problems(held, names), *metadata_problems(metadata, entry_points, project)]


def run_demo(wheel: Path, folder: Path) -> None:
    """Run a small demo from the unpacked wheel in an empty folder. Raises CalledProcessError."""
    unpacked, work = folder / "unpacked", folder / "work"
    work.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
    environment = {**os.environ, "PYTHONPATH": str(unpacked), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-c", "from mm_spine.cli import main; main()", "demo", *SMALL_DEMO]
    subprocess.run(command, cwd=work, env=environment, check=True)
    assert (work / "runs" / "demo" / "spine" / "report.html").is_file()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", action="store_true", help="run a small demo from the wheel")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="copy the wheel there")
    arguments = parser.parse_args()
    names = checkout_files()
    with tempfile.TemporaryDirectory() as folder:
        wheel = build(names, Path(folder))
        problems = problems_of(wheel, names)
        print("\n".join(problems) or f"{wheel.name} holds every file of the package, and its metadata is right.")
        if arguments.keep is not None:
            arguments.keep.mkdir(parents=True, exist_ok=True)
            shutil.copy(wheel, arguments.keep)
        if arguments.demo and not problems:
            run_demo(wheel, Path(folder))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
