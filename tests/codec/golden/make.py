"""How the golden files beside this were made: python -m tests.codec.golden.make

Run it only when the format or the exact arithmetic changes on purpose: files already out there
would no longer decode.
"""

import json
from pathlib import Path

from PIL import Image

from hpcm_scale.codec.codec import Codec
from tests.codec.conftest import photo, save_tiny
from tests.codec.golden.decode import decoded

HERE = Path(__file__).parent


def main() -> None:
    """Write the model, the pictures coded by it, and what they decode to."""
    model = HERE / "model.safetensors"
    nets = {"before": 1, "after": 1}
    save_tiny(
        model,
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
    expected = {}
    # As one tile that the picture does not fill, and in three tiles.
    for name, size, memory in (("whole", (120, 150), 2 << 30), ("tiled", (40, 600), 1 << 16)):
        data = Codec.load(model, memory=memory).encode(photo(*size))
        (HERE / f"{name}.hpcm").write_bytes(data)
        result = decoded(model, data)
        expected[name] = {"symbols": result.symbols, "y_hat": result.y_hat}
        Image.fromarray(result.pixels).save(HERE / f"{name}.png")
    (HERE / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
