#!/usr/bin/env bash
# Measure on one GPU what this project claims, in at most nine minutes and without a network.
set -euo pipefail
root="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)"

usage() {
    cat <<'EOT'
usage: scripts/gpu_check.sh --fetch DIR [--python 3.12] [--torch 2.11] [--have PACKAGE...]
       scripts/gpu_check.sh --output OUT [--wheels DIR] [--only PHASE...] [--rehearse [--patience TIMES]]

--fetch, where there is a network: collect into DIR the wheels that a bare GPU machine lacks, at most 60 MiB.
  --python, --torch   those of the GPU machine
  --have PACKAGE...   packages that it holds beyond torch, transformers, peft, accelerate, scikit-learn and what they
                      need; the more it holds, the more fits: with pyarrow and pandas also TRL

--output, on the GPU machine: run the phases and write OUT/gpu.json after each of them and OUT/gpu.md at the end.
  --wheels DIR        first install the wheels of DIR into a temporary folder, behind the machine's own packages
  --only PHASE...     only these phases: machine exactness update trl sampler digits seeds
  --rehearse          tiny shapes, on a CPU: shows that every phase runs, and measures nothing
  --patience TIMES    multiply all limits of a rehearsal, for a machine with other work
The exit code is 1 if a phase failed or ran out of time, 2 if nothing could be run.

  PYTHON=...          the interpreter that holds torch (default: python3)
EOT
}

case "${1:-}" in "" | -h | --help) usage; exit 0 ;; esac

# Two OpenMP threads that spin at a barrier are far slower than one under load.
export OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=0
export PYTHONPATH="$root/scripts${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" -m gpu.check "$@"
