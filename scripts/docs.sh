#!/usr/bin/env bash
# Build the documentation as a site into site/. A broken link or anchor is an error. Nothing is fetched.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/_setup.sh"

usage() {
    cat <<'EOF'
usage: scripts/docs.sh [--serve]

Sets up .venv as scripts/test.sh does, then builds site/ with mkdocs. With --serve, shows the site at
127.0.0.1:8000 instead and builds it again when a page changes.
EOF
}

case "${1:-}" in -h | --help) usage; exit 0 ;; esac

setup_environment dev
cd -- "$root"
# mkdocs-material otherwise prints an advertisement for another program.
export NO_MKDOCS_2_WARNING=1
if [ "${1:-}" = --serve ]; then exec "$python" -m mkdocs serve; fi
exec "$python" -m mkdocs build --quiet --clean
