"""How the golden files beside this were made: python -m tests.codec.golden.make NAME...

Run it only when the format or the exact arithmetic changes on purpose: files already out there
would no longer decode.
"""

import json
import sys
from pathlib import Path

from PIL import Image

from hpcm_scale.codec.codec import Codec
from hpcm_scale.entropy.exact.arithmetic import ORIGINAL, Arithmetic
from hpcm_scale.weights.model_file import load_model, save_model
from tests.codec.conftest import photo, save_tiny
from tests.codec.golden.decode import MODELS, decoded

HERE = Path(__file__).parent
ARITHMETICS = {
    "model": ORIGINAL,
    "narrow-model": Arithmetic(2, frozenset({"steps.2.adaptor", "shared_s3.before.0.depthwise"})),
}
PICTURES = {
    # As one tile that the picture does not fill, and in three tiles.
    "whole": ((120, 150), 2 << 30),
    "tiled": ((40, 600), 1 << 16),
    "narrow": ((120, 150), 2 << 30),
}


def make_model(name: str) -> None:
    """Write the model file `name`."""
    path = HERE / f"{name}.safetensors"
    nets = {"before": 1, "after": 1}
    save_tiny(
        path,
        name="golden",
        latent_channels=8,
        hyper_channels=4,
        widths=[4, 4, 8],
        analysis_depths=[1, 1, 1, 0],
        synthesis_depths=[1, 1, 1, 0],
        hyper_depths=[1, 1],
        shared_s12=nets,
        shared_s3=nets,
    )
    made = load_model(path)
    state = {key: value.clone() for key, value in made.network.state_dict().items()}
    save_model(
        path,
        state,
        made.info.config,
        lmbda=0.013,
        record={"steps": 0},
        half=name != "model",
        arithmetic=ARITHMETICS[name],
    )


def main() -> None:
    """Write models, the pictures coded by them, and what they decode to."""
    expected = json.loads((HERE / "expected.json").read_text())
    for name in sys.argv[1:]:
        make_model(MODELS[name])
        model = HERE / f"{MODELS[name]}.safetensors"
        size, memory = PICTURES[name]
        data = Codec.load(model, memory=memory).encode(photo(*size))
        (HERE / f"{name}.hpcm").write_bytes(data)
        result = decoded(model, data)
        expected[name] = {"symbols": result.symbols, "y_hat": result.y_hat}
        Image.fromarray(result.pixels).save(HERE / f"{name}.png")
    (HERE / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
