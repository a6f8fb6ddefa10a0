#!/usr/bin/env bash
# A run on several hosts under Slurm: two hosts of eight GPUs, unless sbatch's options say otherwise.
#
# usage: sbatch [--nodes=2 --gpus-per-node=8 ...] scripts/cluster/slurm.sh slake --output /shared/runs/slake [...]
#
# Submit it from the checkout, which every host must see under the same path, .venv included. What else must be shared:
# docs/hosts.md. A job that reaches its time limit is sent SIGTERM ten minutes before, writes a checkpoint and stops;
# submit the same command with --resume to go on.
#SBATCH --job-name=mm-spine
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@600
#SBATCH --output=%x-%j.log
set -euo pipefail
# Slurm runs a copy of this script, so the checkout is the folder that it was submitted from.
cd -- "${SLURM_SUBMIT_DIR:?submit this with sbatch}"
MASTER="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
# Jobs may share a host: a port from the job's number keeps them apart.
PORT=$((20000 + SLURM_JOB_ID % 20000))
NODES="$SLURM_JOB_NUM_NODES" PER_NODE="${SLURM_GPUS_PER_NODE##*:}" JOB="$SLURM_JOB_ID"
export MASTER PORT NODES PER_NODE JOB
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((${SLURM_CPUS_PER_TASK:-8} / PER_NODE))}"
# Nothing is fetched from compute nodes: fetch model and questions beforehand.
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 HF_DATASETS_OFFLINE=1
# A host that fails ends the others, which would wait for it.
exec srun --kill-on-bad-exit=1 scripts/cluster/agent.sh "$@"
