#!/usr/bin/env bash
# A run on several hosts with DeepSpeed's launcher, which reaches the hosts of a hostfile through ssh and pdsh.
#
# usage: [HOSTFILE=scripts/cluster/hostfile] scripts/cluster/deepspeed.sh slake --output /shared/runs/slake [...]
#
# Needs pdsh here, and ssh without a password to every host. The launcher changes to the present folder on each host
# and uses the same interpreter there. Variables of the environment go along if .deepspeed_env names them, in the home
# folder or in this one (one NAME=VALUE a line); names that begin with NCCL or PYTHON always do.
#
#   HOSTFILE=...   a host and its number of GPUs on each line, as in scripts/cluster/hostfile
#   LAUNCHER=...   further options of the launcher, e.g. "--launcher openmpi" or "--include host1:0,1"
#   PYTHON=...     the interpreter of the environment (default: .venv beside the checkout)
set -euo pipefail
root="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd)"
python="${PYTHON:-$root/.venv/bin/python}"
# DeepSpeed's launcher starts `python` with the package's own path only: name the checkout.
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
# --no_local_rank: the rank comes through the environment, and the command line stays ours.
# shellcheck disable=SC2086
exec "$python" -m deepspeed.launcher.runner --hostfile "${HOSTFILE:-$root/scripts/cluster/hostfile}" ${LAUNCHER:-} \
    --no_local_rank --module mm_spine.cli adapt "$@"
