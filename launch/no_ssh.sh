#!/usr/bin/env bash
# Starts the ranks of this host alone, for clusters that run a command on every host by themselves: no ssh.
#   HOSTS="node-0 node-1" HOST_RANK=0 SLOTS=8 bash launch/no_ssh.sh launch/train.py --config configs/runs/base.yaml --resume auto
# HOSTS is the same everywhere; HOST_RANK is 0 on the first of them, 1 on the next; SLOTS is the ranks of each.
# launch/kubernetes.yaml is a job that does this. SIGTERM or Ctrl-C to one host makes the whole run save and stop (exit
# code 75). The exit code is the ranks' own.
set -euo pipefail
cd "$(dirname "$0")/.."
MASTER_ADDR=${MASTER_ADDR:-${HOSTS%% *}}
# Hosts start in any order: the first may not have a name yet.
for _ in $(seq 300); do
    getent ahosts "$MASTER_ADDR" > /dev/null && break || sleep 2
done
source launch/env.sh
exec python -u -m hpcm_scale.cli.host "$@"
