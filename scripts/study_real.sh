#!/usr/bin/env bash
# Run what is left of the study on real pretrained weights, and write its page.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/_setup.sh"

usage() {
    cat <<'EOT'
usage: scripts/study_real.sh [--jobs 1] [--only GLOB]... [--report-only] [--output runs/study_real] [--results DIR]

Runs every cell (task/method/seed) that has no summary.json yet with the model that scripts/real.sh makes (call that
first), then writes docs/results/real.md from the finished ones. Interrupt it at any time and call it again to go on:
some hours on two cores.

  --jobs N        runs at a time (default 1); the machine's cores are divided among them
  --only GLOB     only cells whose name matches, e.g. 'capitals/spine/*' or '*/seed_0'; may be given several times
  --report-only   run nothing, write the page
  --output DIR    folder of the cells (default runs/study_real)
  --results DIR   folder of the page (default docs/results)
EOT
}

case "${1:-}" in -h | --help) usage; exit 0 ;; esac

setup_environment dev
cd -- "$root"
exec "$python" scripts/study/real_cells.py "$@"
