"""Build the wheel offline, from a copy of the checkout, and check that it holds the package and nothing else.

    python scripts/check_wheel.py

Exits with a message that names what is missing or does not belong there.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LINKED = ("processors", "benchmarks", "configs")


def checkout_files() -> list[str]:
    """Return the names of the files under version control or about to be, relative to the checkout."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = [name for name in listed.split("\0") if name]
    return [name for name in names if (ROOT / name).is_file() and not (ROOT / name).is_symlink()]


def build(names: Sequence[str], folder: Path) -> list[str]:
    """Build the wheel from a copy of the files `names` under `folder`; return the names inside it."""
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
    with zipfile.ZipFile(built) as archive:
        return archive.namelist()


def expected(names: Sequence[str]) -> set[str]:
    """Return the names that the wheel must hold: every module, every configuration, the embedded model."""
    found = {"mm_spine/py.typed", "mm_spine/processors/__init__.py"}
    for name in names:
        top, _, rest = name.partition("/")
        is_data = (top == "configs" and name.endswith((".yaml", ".json"))) or rest.startswith("digits_model/")
        if top in {*LINKED, "mm_spine"} and (name.endswith(".py") or is_data):
            found.add(f"mm_spine/{name}" if top in LINKED else name)
    return found


def main() -> int:
    names = checkout_files()
    with tempfile.TemporaryDirectory() as folder:
        held = build(names, Path(folder))
    tops = {name.partition("/")[0] for name in held if ".dist-info/" not in name}
    problems = [f"{top}: a top-level name beside mm_spine" for top in sorted(tops - {"mm_spine"})]
    problems += [f"{name}: missing from the wheel" for name in sorted(expected(names) - set(held))]
    problems += [f"{name}: in the wheel more than once" for name in sorted({n for n in held if held.count(n) > 1})]
    if not any(name.endswith("licenses/LICENSE") for name in held):
        problems.append("LICENSE: missing from the wheel")
    print("\n".join(problems) or f"The wheel holds {len(held)} files.")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
