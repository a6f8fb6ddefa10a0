#!/usr/bin/env python3
"""Run `mm-spine ask` from a checkout.

    scripts/ask.py IMAGE "QUESTION" [--adapt STEPS] [--model DIR] [--json] ...

`scripts/ask.py --help` lists all options. If the Python that starts the script has no mm_spine, the script restarts
itself with the Python of the checkout's .venv, which scripts/demo.sh creates.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

VENV = Path(__file__).resolve().parents[1] / ".venv"


def main() -> None:
    """Run the command in this process, or restart with the Python of .venv."""
    python = VENV / "bin" / "python"
    if importlib.util.find_spec("mm_spine") is None:
        if Path(sys.prefix) == VENV or not python.exists():
            install = "scripts/demo.sh, or pip install -c constraints.txt -e ."
            print(f"mm_spine is not installed: run {install}", file=sys.stderr)
            sys.exit(2)
        os.execv(python, [str(python), *sys.argv])
    from mm_spine.cli import main as command

    sys.argv[:1] = ["mm-spine", "ask"]
    command()


if __name__ == "__main__":
    main()
