#!/usr/bin/env bash
# Evaluate a model with lmms-eval, sampled and voted as in training; see --help.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/_setup.sh"

usage() {
    cat <<'EOF'
usage: scripts/eval_lmms.sh MODEL TASK... [OPTION...] [-- LMMS-EVAL-OPTION...]

Evaluates a model with lmms-eval 0.7 through our processor and sampler. Makes .venv beside the checkout and installs
the pinned packages and the extra `eval` on the first call. May be run from any folder: relative paths are those of
the folder it is run from.

  MODEL            a model's folder (RUN/adapted: with the image limits of its run) or hub id
  TASK             a task of lmms-eval (mmmu_val; all: `-- --tasks list`), a folder of your own questions, or
                   mm_spine:NAME for a benchmark of `mm-spine benchmarks`, with our prompts and grader
  --args A=B,...   how answers are drawn: votes=8,temperature=0.7,max_new_tokens=512,kind=choice,backend=vllm,
                   dtype=bfloat16,batch_rows=64,max_pixels=1003520,adapter=RUN/adapted/adapter,seed=1,
                   config=RUN/config.yaml. Without votes the task's own settings hold, as a rule greedy ones
  --output DIR     results as JSON, each response, and the tasks written (default: runs/lmms_eval)
  --source PLACE   where the data of mm_spine:NAME lies: a folder, or another hub id
  -- ...           passed on to lmms-eval: --limit 8, --gen_kwargs ..., --num_fewshot ..., --verbosity DEBUG, ...

  PYTHON=...       the interpreter to make .venv with (Python 3.11 or later; default: the first found)
  HF_HUB_OFFLINE=1 reads model and tasks from the hub's cache alone; HF_TOKEN opens what is gated.

Example: scripts/eval_lmms.sh benchmarks/digits_model mm_spine:digits --args votes=8,temperature=0.7 -- --limit 32
EOF
}

case "${1:-}" in "" | -h | --help) usage; exit 0 ;; esac

# In a shell of its own: what keeps the demo from the hub is not meant for a model or a task that lies there.
(
    setup_environment base
    "$python" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("lmms_eval") is None)' \
        || install_packages ".[eval]" \
        || die "The extra eval cannot be installed here; see above. lmms-eval needs av < 16."
)
export PYTHONSAFEPATH=1
exec "$python" -m mm_spine.integrations.lmms_cli "$@"
