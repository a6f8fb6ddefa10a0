#!/usr/bin/env bash
# Adapt the embedded model to unlabelled handwriting and print what it gained.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/_setup.sh"

usage() {
    cat <<'EOF'
usage: scripts/demo.sh [OPTION...]

Makes .venv beside the checkout (first call only), installs the pinned packages, and runs the demo on
the embedded handwriting benchmark. Options are passed on to `mm-spine demo`.

  PYTHON=...    the interpreter to make .venv with (Python 3.11 or later; default: the first found)
  pip's own settings (PIP_INDEX_URL, PIP_FIND_LINKS, ...) are honoured: they decide which build of
  torch 2.13.0 is taken, CPU or CUDA.
EOF
}

case "${1:-}" in -h | --help) usage; exit 0 ;; esac

setup_environment base
cd -- "$root"
exec "$python" -m mm_spine.cli demo "$@"
