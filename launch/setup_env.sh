#!/usr/bin/env bash
# Makes .venv once, with every package at the version it was tried with; does nothing when it is already right.
#   bash launch/setup_env.sh          afterwards: source .venv/bin/activate
set -euo pipefail
cd "$(dirname "$0")/.."

stamp=.venv/installed.sha256
want=$(cat pyproject.toml launch/constraints.txt | sha256sum | cut -d' ' -f1)
if [ "$(cat "$stamp" 2>/dev/null || true)" = "$want" ]; then
    exit 0
fi

python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "setup_env: Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11" >&2
    exit 2
}
echo "setting up .venv (several minutes the first time) ..."
[ -x .venv/bin/python ] || "$python" -m venv .venv
pip=".venv/bin/python -m pip --disable-pip-version-check --quiet"
# torch alone and first, so that no other package can choose its build. TORCH_INDEX_URL picks one for your GPUs.
$pip install ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} "$(grep '^torch==' launch/constraints.txt)"
$pip install -c launch/constraints.txt setuptools wheel
# Without build isolation a source package (deepspeed) finds the torch just installed instead of fetching its own.
$pip install -c launch/constraints.txt hatchling editables ninja packaging
$pip install -c launch/constraints.txt --no-build-isolation -e '.[train,eval,demo,test]'
echo "$want" > "$stamp"
.venv/bin/python -c 'from hpcm_scale.training.build_tools import PACKAGES, missing_tools
if lacking := missing_tools(): print(f"note: no {chr(44).join(lacking)} here: all works but offloading optimizer state to the host or its disks ({PACKAGES})")'
echo "done: source .venv/bin/activate"
