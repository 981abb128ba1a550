#!/usr/bin/env bash
# Starts a script on every host of a hostfile: the deepspeed launcher over pdsh and ssh.
#   bash launch/multinode.sh hostfile launch/train.py --config configs/runs/base.yaml --resume auto
# Needs pdsh here, ssh without a password to every host, and on every host this folder with its .venv, the data and the
# run's folder at the same paths: `hpcm-scale doctor --hostfile hostfile` looks. SIGTERM or Ctrl-C makes the run save and
# stop (exit code 75).
set -euo pipefail
hostfile=$(realpath "$1")
cd "$(dirname "$0")/.."
first=$(awk '/slots=/ && !/^#/ { print $1; exit }' "$hostfile")
MASTER_ADDR=${MASTER_ADDR:-$first}
source launch/env.sh

# A port that another program listens on would keep the other hosts waiting for ranks that cannot meet.
taken='import socket, sys
try: socket.create_server(("", int(sys.argv[1]))).close()
except OSError: sys.exit(3)'
status=0
ssh -n $ssh_options "$first" "'$PWD/.venv/bin/python' -c '$taken' $MASTER_PORT" 2> /dev/null || status=$?
if [ $status = 3 ]; then
    echo "multinode.sh: MASTER_PORT: $MASTER_PORT is in use on $first; set it to a free port" >&2
    exit 2
fi

# The lines of this file become the environment of every rank.
DS_ENV_FILE=$(mktemp)
trap 'rm -f "$DS_ENV_FILE"' EXIT
for name in $PASSED_ON; do
    [ -z "${!name:-}" ] || echo "$name=${!name}"
done > "$DS_ENV_FILE"
export DS_ENV_FILE PDSH_SSH_ARGS_APPEND=$ssh_options

# --force_multi: a single host too is reached by ssh, for it need not be this one. A session of its own: Ctrl-C must not
# reach the launcher, which would end every deepspeed job on those hosts, and not wait for long checkpoints.
setsid deepspeed --quiet --hostfile "$hostfile" --no_ssh_check --force_multi \
    --master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT" "${@:2}" &
job=$!

# One rank that is told to stop is enough: the others hear of it at the next step. They are children of this job's launcher.
stop() {
    ssh -n $ssh_options "$first" "pkill -USR1 -P \$(pgrep -f \
        '^[^ ]*python[^ ]* -u -m deepspeed.launcher.launch .*--master_port=$MASTER_PORT ')" || true
}
trap stop TERM INT
while kill -0 $job 2> /dev/null; do wait $job || true; done # a signal ends a wait, not the job
wait $job # for its exit code
