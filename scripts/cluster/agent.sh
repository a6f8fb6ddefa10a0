#!/usr/bin/env bash
# One host's part of a run on several hosts: starts torchrun's agent, which joins the others. Give every host the same
# command. scripts/cluster/slurm.sh does so; without a scheduler, start it on each host by hand or with ssh.
#
# usage: NODES=2 PER_NODE=8 MASTER=host0 [PORT=29500] scripts/cluster/agent.sh slake --output /shared/runs/slake [...]
#
#   NODES=...      how many hosts
#   PER_NODE=...   processes on each: one a GPU
#   MASTER=...     the name or address of one of the hosts, the same on all; the agents meet there
#   PORT=...       a free port on that host (default: 29500)
#   JOB=...        tells runs apart that meet on one host (default: mm-spine)
#   PYTHON=...     the interpreter of the environment (default: .venv beside the checkout)
set -euo pipefail
root="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd)"
: "${NODES:?how many hosts}" "${PER_NODE:?how many processes on each}" "${MASTER:?the host where the agents meet}"
# A file of the user's folder must not stand in for a module of that name.
export PYTHONSAFEPATH=1
# On SIGTERM the run finishes its step and writes a checkpoint; torchrun would end it after 30 seconds.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600}"
exec "${PYTHON:-$root/.venv/bin/python}" -m torch.distributed.run --nnodes "$NODES" --nproc-per-node "$PER_NODE" \
    --rdzv-backend c10d --rdzv-endpoint "$MASTER:${PORT:-29500}" --rdzv-id "${JOB:-mm-spine}" --max-restarts 0 \
    -m mm_spine.cli adapt "$@"
