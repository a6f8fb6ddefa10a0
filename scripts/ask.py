#!/usr/bin/env python3
"""Ask about an image, from a checkout: the same as `mm-spine ask`.

    scripts/ask.py IMAGE "QUESTION" [--adapt STEPS] [--model DIR] [--json] ...

`scripts/ask.py --help` lists the rest. It runs in the checkout's .venv, which scripts/demo.sh makes, unless the python
that starts it has mm_spine itself.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

VENV = Path(__file__).resolve().parents[1] / ".venv"


def main() -> None:
    """`mm-spine ask` with these arguments, once there is a python that can."""
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
