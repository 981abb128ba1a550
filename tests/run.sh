#!/usr/bin/env bash
# Sets up the environment and runs all the tests this machine can run; skips are listed with their reasons.
#   bash tests/run.sh                 everything
#   bash tests/run.sh -m "not slow"   anything pytest takes
set -euo pipefail
cd "$(dirname "$0")/.."
bash launch/setup_env.sh
export DS_ACCELERATOR=${DS_ACCELERATOR:-$(.venv/bin/python -c 'import torch; print("cuda" if torch.cuda.is_available() else "cpu")')}
if [ $# -gt 0 ]; then
    exec .venv/bin/python -m pytest "$@"
fi
# Tests of one process share the cores; those that start several have them to themselves.
status=0
.venv/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile -m "not distributed and not hosts" || status=$?
.venv/bin/python -m pytest -m "distributed or hosts" || status=$?
exit $status
