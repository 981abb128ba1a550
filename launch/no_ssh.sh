#!/usr/bin/env bash
# Starts the ranks of this host alone, for clusters that run a command on every host by themselves: no ssh.
#   HOSTS="node-0 node-1" HOST_RANK=0 SLOTS=8 bash launch/no_ssh.sh launch/train.py --config configs/runs/base.yaml --resume auto
# HOSTS is the same everywhere; HOST_RANK is 0 on the first of them, 1 on the next; SLOTS is the ranks of each.
# launch/kubernetes.yaml is a job that does this. The exit code is the ranks' own.
set -euo pipefail
cd "$(dirname "$0")/.."
MASTER_ADDR=${MASTER_ADDR:-${HOSTS%% *}}
# Hosts start in any order: the first may not have a name yet.
for _ in $(seq 300); do
    getent ahostsv4 "$MASTER_ADDR" > /dev/null && break || sleep 2
done
source launch/env.sh

# The launcher's own form of a hostfile.
world=$(python -c 'import base64, json, sys
slots, *hosts = sys.argv[1:]
print(base64.urlsafe_b64encode(json.dumps({h: list(range(int(slots))) for h in hosts}).encode()).decode())' "$SLOTS" $HOSTS)
exec python -u -m deepspeed.launcher.launch --world_info="$world" --node_rank="$HOST_RANK" \
    --master_addr="$MASTER_ADDR" --master_port="$MASTER_PORT" --log_level=error "$@"
