#!/usr/bin/env bash
# From nine photos to a scaling law and a compressed picture, in minutes on two cores.
#   bash launch/quickstart.sh
# Everything it makes is in quickstart/.
set -euo pipefail
cd "$(dirname "$0")/.."

# The environment, made once.
bash launch/setup_env.sh
source .venv/bin/activate
# Said outright, so that DeepSpeed does not warn about having to guess.
export DS_ACCELERATOR=${DS_ACCELERATOR:-$(python -c 'import torch; print("cuda" if torch.cuda.is_available() else "cpu")')}

# Nine real photos, from the scikit-image and scikit-learn packages.
rm -rf quickstart
python launch/photos.py quickstart/photos

# 1. Photos into tar shards with a manifest; two photos are kept for validation.
hpcm-scale pack quickstart/photos quickstart/shards --recipe shards/quickstart.yaml

# 2. Three widths of one family, each under DeepSpeed ZeRO-3 in two processes.
for width in 0.025 0.05 0.1; do
    hpcm-scale train configs/runs/quickstart.yaml -n 2 --set name="w$width" --set model.width="$width"
done

# 3. A law of loss against parameters, as far as three points can tell.
hpcm-scale fit quickstart/runs -o quickstart/report

# 4. The widest once more, its transforms now beginning as the photos' principal components: as short a
#    training gives pictures to look at. As one file: weights, configuration and frozen coding tables.
hpcm-scale train configs/runs/quickstart.yaml -n 2 --set name=w0.1-components --set initial_weights=principal_components
hpcm-scale export quickstart/runs/w0.1-components quickstart/model.safetensors

# 5. A photo that no run has trained on, to a real file and back.
hpcm-scale encode quickstart/photos/chelsea.png -o quickstart/chelsea.hpcm \
    --model quickstart/model.safetensors -v
hpcm-scale decode quickstart/chelsea.hpcm -o quickstart/chelsea.decoded.png \
    --model quickstart/model.safetensors -v
hpcm-scale compare quickstart/photos/chelsea.png quickstart/chelsea.decoded.png \
    -o quickstart/side_by_side.png

# 6. Another photo by a model that comes with the program, beside a JPEG of as many bytes.
hpcm-scale encode quickstart/photos/coffee.png -o quickstart/coffee.hpcm -q 1
hpcm-scale decode quickstart/coffee.hpcm -o quickstart/coffee.decoded.png
python launch/beside_jpeg.py quickstart/photos/coffee.png quickstart/coffee.hpcm quickstart/coffee.decoded.png \
    quickstart/beside_jpeg.png
