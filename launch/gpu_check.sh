#!/usr/bin/env bash
# Everything that a machine with a GPU has to prove, in under an hour: report.html and record.json.
#   bash launch/gpu_check.sh [FOLDER] [--name NAME]     NAME keeps the record in launch/records/, where `plan` finds it
# On a machine without a GPU it runs smaller.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -n "${HPCM_NO_SETUP:-}" ] || bash launch/setup_env.sh
python=.venv/bin/python
export DS_ACCELERATOR=${DS_ACCELERATOR:-$($python -c 'import torch; print("cuda" if torch.cuda.is_available() else "cpu")')}
exec $python -m hpcm_scale bench gpu "$@"
