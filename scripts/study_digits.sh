#!/usr/bin/env bash
# Run what is left of the study of the embedded handwriting benchmark, and write its report.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/_setup.sh"

usage() {
    cat <<'EOT'
usage: scripts/study_digits.sh [--study digits] [--rows NAME,NAME] [--jobs 2] [--only GLOB]... [--repeat GLOB] [--report-only] [--output runs/study] [--results DIR] [KEY=VALUE...]

Runs every cell (group/method/seed) that has no summary.json yet, then writes docs/results/digits.md from
the finished ones. Interrupt it at any time and call it again to go on: hours on two cores.

  --study NAME    digits (default); catalogue: every method at the default and at a common learning rate, written to
                  catalogue.md; frontier: every method at growing learning rates without the guard, to frontier.md
  --rows NAMES    only these methods of the catalogue or the frontier, separated by commas
  --jobs N        worker processes, one thread each (default 2)
  --only GLOB     only cells whose name matches, e.g. 'main/spine/*' or '*/seed_0'; may be given several times
  --report-only   run nothing, write the report
  --output DIR    folder of the cells (default runs/study)
  --results DIR   folder of the report (default docs/results)
  KEY=VALUE       configuration of every cell, for a trial; wants an --output and a --results of its own
EOT
}

case "${1:-}" in -h | --help) usage; exit 0 ;; esac

setup_environment dev
cd -- "$root"
export OMP_NUM_THREADS=1
exec "$python" scripts/study/run_cells.py "$@"
