#!/usr/bin/env bash
# Keeps a run on many hosts going: a job that fails starts again from its newest good checkpoint, on the hosts that answer.
#   bash launch/supervise.sh hostfile --config configs/runs/base.yaml
# RESTARTS=20 bounds the new starts, PAUSE=60 is the seconds before each, in which ranks that were cut off from the others
# find out and end. SIGTERM or Ctrl-C makes the run save and stop. The exit code is that of the last job: 0 done, 2 only you
# can put it right, 75 told to stop; none of these is tried again.
# (DeepSpeed 0.19 has no elastic agent any more, and torchrun's neither starts hosts nor knows which numbers of ranks a run
# can be shared by.)
set -uo pipefail
hostfile=$(realpath "$1")
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"
left=$(mktemp)
# Of the arguments, what decides how many ranks can share the run: its file and the fields over it.
available=()
for ((i = 2; i < $#; i++)); do
    next=$((i + 1))
    case "${!i}" in
        --config) available+=("${!next}") ;;
        --set) available+=(--set "${!next}") ;;
    esac
done
trap 'rm -f "$left"' EXIT
job= stopped=
trap 'stopped=yes; [ -z "$job" ] || kill -TERM "$job"' TERM INT

for attempt in $(seq 0 "${RESTARTS:-20}"); do
    if [ "$attempt" != 0 ]; then
        echo "supervise: exit code $code; restart $attempt of ${RESTARTS:-20} in ${PAUSE:-60} s" >&2
        sleep "${PAUSE:-60}" & wait $! # in the background: a signal is not kept waiting
        [ -z "$stopped" ] || exit 75
    fi
    # The hosts that answer, as many as can share the run's batch and streams.
    hpcm-scale doctor --hostfile "$hostfile" --available "${available[@]}" > "$left"
    code=$?
    [ $code != 2 ] || exit 2
    [ $code = 0 ] || continue
    [ -z "$stopped" ] || exit 75
    bash launch/multinode.sh "$left" launch/train.py --resume auto "${@:2}" &
    job=$!
    while kill -0 "$job" 2> /dev/null; do wait "$job"; done # a signal ends a wait, not the job
    wait "$job"
    code=$?
    job=
    case $code in 0 | 2 | 75) exit $code ;; esac
    [ -z "$stopped" ] || exit $code
done
echo "supervise: exit code $code; given up after RESTARTS=${RESTARTS:-20} new starts, of jobs that failed and of times when" \
    "no host answered; the same line goes on from the newest good checkpoint" >&2
exit $code
