#!/usr/bin/env bash
# HPCM-1B on one machine of 24 GiB, without GPU: optimizer steps, a checkpoint, more steps from it, export, a picture to a file and back.
#   bash launch/one_billion.sh [PHOTOS [PICTURE]]
# PHOTOS is a folder of photos to train on and PICTURE one to code, both of the quick start if not given.
# Parameters and optimizer state are on the disk of one_billion/, which needs 45 GB and libaio-dev (Debian) for DeepSpeed's asynchronous I/O.
# RANKS=2 spreads them over two processes. Every phase ends with a line of what it took.
set -euo pipefail
photos=${1:+$(realpath "$1")}
picture=${2:+$(realpath "$2")}
cd "$(dirname "$0")/.."
bash launch/setup_env.sh
source .venv/bin/activate
export DS_ACCELERATOR=${DS_ACCELERATOR:-cpu}
ranks=${RANKS:-1}

rm -rf one_billion
mkdir -p one_billion
python launch/photos.py one_billion/photos
recipe=shards/quickstart.yaml
[ -z "$photos" ] || recipe=shards/photos.yaml
picture=${picture:-one_billion/photos/chelsea.png}
hpcm-scale pack "${photos:-one_billion/photos}" one_billion/shards --recipe "$recipe"

train=(hpcm-scale train configs/runs/one-billion.yaml -n "$ranks" --set data.train=one_billion/shards --set out=one_billion --set batch="$ranks")
took() { python launch/phase.py "$@"; }
disk() { du -sh one_billion/1b | sed 's/\t.*/ on disk/'; }

# What it needs, worked out beforehand; this ends here if the machine has less.
"${train[@]}" --dry-run
took "steps 1 to 6" "${train[@]}" --set checkpoint.every=6
disk
took "steps 7 and 8, resumed" "${train[@]}" --resume auto --set steps=8 --set checkpoint.every=8
disk
took "export" hpcm-scale export one_billion/1b one_billion/model.safetensors --shard-size 1GB --no-check
ls -lh one_billion/model* | awk '{print $5, $9}'
took "encode" hpcm-scale encode "$picture" -o one_billion/picture.hpcm --model one_billion/model.safetensors.index.json -v
took "decode" hpcm-scale decode one_billion/picture.hpcm -o one_billion/picture.png --model one_billion/model.safetensors.index.json -v
hpcm-scale compare "$picture" one_billion/picture.png -o one_billion/side_by_side.png
