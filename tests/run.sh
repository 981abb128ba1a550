#!/usr/bin/env bash
# Sets up the environment and runs the tests this machine can run; skips are listed with their reasons.
#   bash tests/run.sh                 all but the long ones, which repeat in more settings what others show
#   bash tests/run.sh --all           everything
#   bash tests/run.sh -m "not slow"   anything pytest takes
set -euo pipefail
cd "$(dirname "$0")/.."
bash launch/setup_env.sh
export DS_ACCELERATOR=${DS_ACCELERATOR:-$(.venv/bin/python -c 'import torch; print("cuda" if torch.cuda.is_available() else "cpu")')}
chosen=" and not long"
if [ "${1:-}" = --all ]; then
    chosen=""
elif [ $# -gt 0 ]; then
    exec .venv/bin/python -m pytest "$@"
fi
# Tests of one process share the cores; those that start several have them to themselves.
status=0
.venv/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile -m "not distributed and not hosts$chosen" || status=$?
.venv/bin/python -m pytest -m "(distributed or hosts)$chosen" || status=$?
exit $status
