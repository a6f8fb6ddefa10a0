"""The command behind scripts/gpu_check.sh: collect wheels, or install them and run the phases.

Standard library only: torch may be missing, and this process says so.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gpu import page, wheels
from gpu.plan import INSTALL, PHASES, TOTAL, failed, launcher, run_phases, write_atomically


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit code: 1 if a phase failed, 2 if nothing could be run."""
    options = parse(arguments)
    try:
        if options.fetch is not None:
            wheels.fetch(options.fetch, options.python, options.torch, options.have)
            return 0
        return check(options)
    except wheels.Refused as why:
        print(why, file=sys.stderr)
        return 2


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="scripts/gpu_check.sh")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--fetch", type=Path, metavar="DIR")
    what.add_argument("--output", type=Path, metavar="OUT")
    parser.add_argument("--python", default="3.12")
    parser.add_argument("--torch", default="2.11")
    parser.add_argument("--have", nargs="*", default=[], metavar="PACKAGE")
    parser.add_argument("--wheels", type=Path, metavar="DIR")
    parser.add_argument("--only", nargs="+", choices=[phase.name for phase in PHASES], metavar="PHASE")
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--patience", type=float, default=1.0, metavar="TIMES")
    options = parser.parse_args(arguments)
    if options.patience != 1.0 and not options.rehearse:
        parser.error("--patience is for --rehearse: the time on a GPU machine is what it is")
    return options


def check(options: argparse.Namespace) -> int:
    """Install the wheels, run the phases, write gpu.json and gpu.md; return the exit code."""
    begun = time.monotonic()
    # A relative path would mean another file to a phase.
    output: Path = options.output.resolve()
    if (output / "gpu.json").exists():
        raise wheels.Refused(f"--output {options.output}: it holds a check; name another folder")
    output.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {
        "command": shlex.join(["scripts/gpu_check.sh", *sys.argv[1:]]),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "rehearsal": options.rehearse,
        "limit_seconds": round(TOTAL * options.patience),
        "seconds": 0.0,
        "wheels": [],
        "phases": {},
    }

    def save(phases: dict[str, Any]) -> None:
        record.update(phases=phases, seconds=round(time.monotonic() - begun, 1))
        write_atomically(output / "gpu.json", json.dumps(record, indent=1))
        if phases:
            last = list(phases.values())[-1]
            print(f"{last['seconds']:6.0f} s  {last['status']}: {last['title']}", last["error"] or "", flush=True)

    with tempfile.TemporaryDirectory(prefix="gpu_check_") as folder:
        flags = ["--rehearse"] if options.rehearse else []
        if options.wheels is not None:
            record["wheels"] = wheels.install(options.wheels.resolve(), Path(folder), INSTALL * options.patience)
            flags += ["--behind", folder]
        wanted = [phase for phase in PHASES if options.only is None or phase.name in options.only]
        phases = [phase._replace(seconds=round(phase.seconds * options.patience)) for phase in wanted]
        records = run_phases(phases, launcher(output, flags), save, begun + TOTAL * options.patience)
    write_atomically(output / "gpu.md", page.page(record))
    if any(each["result"].get("no_device") for each in records.values()):
        return 2
    print(f"written: {options.output / 'gpu.md'}")
    return 1 if failed(records) else 0


def commit() -> str | None:
    """Return the commit of this checkout, None where there is no git."""
    command = ["git", "-C", str(wheels.ROOT), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


if __name__ == "__main__":
    sys.exit(main())
