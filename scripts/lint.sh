#!/usr/bin/env bash
# Check style, formatting, types, the import contracts, the links of the documentation, and the contents of the wheel.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/_setup.sh"

usage() {
    cat <<'EOF'
usage: scripts/lint.sh

Sets up .venv as scripts/test.sh does, then runs every check, also after one has failed. The exit code is 1 if any
failed.
EOF
}

case "${1:-}" in -h | --help) usage; exit 0 ;; esac

failed=""

check() {
    local name="$1"
    shift
    printf '%s ...\n' "$name"
    "$@" || { printf '%s: FAILED\n' "$name"; failed=yes; }
}

setup_environment dev
cd -- "$root"
check "style (ruff)" "$python" -m ruff check .
check "formatting (ruff)" "$python" -m ruff format --check .
check "import contracts (import-linter)" "$python" -c 'from importlinter.cli import lint_imports_command; lint_imports_command()'
NO_MKDOCS_2_WARNING=1 check "documentation (mkdocs)" "$python" -m mkdocs build --quiet --clean
check "wheel" "$python" scripts/check_wheel.py
check "types (mypy)" "$python" -m mypy
[ -z "$failed" ]
