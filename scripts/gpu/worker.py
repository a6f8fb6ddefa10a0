"""The process of one phase: python -m gpu.worker MODULE:FUNCTION NOTES SECONDS [--rehearse] [--behind FOLDER]."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def find_packages(behind: Path | None) -> None:
    """Put this checkout first among the places of imports, and carried packages last."""
    sys.path[:0] = [str(ROOT), str(ROOT / "scripts" / "bench"), str(ROOT / "tests")]
    # Last, so that what the machine has is what is measured.
    sys.path += [] if behind is None else [str(behind)]
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
        os.environ.setdefault(name, "1")


def main() -> int:
    """Run the phase; return 0 where it ran to its end or cannot run here, else 1."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run")
    parser.add_argument("notes", type=Path)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--behind", type=Path)
    options = parser.parse_args()
    find_packages(options.behind)
    import torch

    import mm_spine  # noqa: F401  (sets the environment before torch is imported)
    from gpu.notes import Failed, Notes, Setting, Skipped, one_line

    notes = Notes(options.notes, options.seconds)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module, _, function = options.run.partition(":")
    try:
        measure = getattr(importlib.import_module(f"gpu.{module}"), function)
        measure(Setting(device, options.rehearse, notes))
        notes.finish()
    except Skipped as why:
        notes.put("skipped", str(why))
        return 0
    except Failed as why:
        notes.put("failed", str(why))
        return 1
    except Exception as error:
        traceback.print_exc()
        notes.put("failed", one_line(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
