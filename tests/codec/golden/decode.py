"""Decode the golden files in this process and say what they decoded to, as JSON.

python -m tests.codec.golden.decode [threads]
"""

import json
import sys
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from hpcm_scale.codec import bounded_engine
from hpcm_scale.codec.codec import Codec
from hpcm_scale.entropy.coder import SymbolDigest
from hpcm_scale.entropy.exact.product import multiplies_bytes

HERE = Path(__file__).parent
MODELS = {"whole": "model", "tiled": "model", "narrow": "narrow-model"}
"""The model of each golden file: the first two of arithmetic 1, the last of arithmetic 2."""
NAMES = tuple(MODELS)


class Result(NamedTuple):
    """What a file decodes to."""

    symbols: int
    """CRC-32 of all symbols, z's and each step's, as little-endian 32-bit integers."""
    y_hat: int
    """CRC-32 of ŷ (M, H, W) in little-endian single precision."""
    pixels: np.ndarray


def decoded(model: Path, data: bytes) -> Result:
    """Decode `data`, watching what passes."""
    symbols, latents = [], []
    update, synthesise = SymbolDigest.update, bounded_engine.synthesise

    def updated(self: object, values: np.ndarray) -> None:
        symbols.append(zlib.crc32(values.astype("<i4").tobytes(), symbols[-1] if symbols else 0))
        update(self, values)

    def synthesised(transforms: object, y_hat: object, *rest: object) -> np.ndarray:
        latents.append(zlib.crc32(np.ascontiguousarray(y_hat, "<f4").tobytes()))
        return synthesise(transforms, y_hat, *rest)

    SymbolDigest.update, bounded_engine.synthesise = updated, synthesised
    try:
        pixels = np.asarray(Codec.load(model).decode(data))
    finally:
        SymbolDigest.update, bounded_engine.synthesise = update, synthesise
    return Result(symbols[-1], latents[-1], pixels)


def main() -> None:
    """Print the checksums of every golden file and the kernel that was used."""
    torch.set_num_threads(int(sys.argv[1]))
    said: dict[str, object] = {}
    for name in NAMES:
        model = HERE / f"{MODELS[name]}.safetensors"
        result = decoded(model, (HERE / f"{name}.hpcm").read_bytes())
        said[name] = {"symbols": result.symbols, "y_hat": result.y_hat}
    print(json.dumps(said | {"bytes": multiplies_bytes(torch.device("cpu"))}))


if __name__ == "__main__":
    main()
