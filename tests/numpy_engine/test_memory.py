"""What a picture takes of memory in the NumPy engine: itself, and what its tiles are given."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

WIDTH, ROWS = 256, 512
MEMORY = 1 << 21
"""Bytes to work in: so few that the smaller picture is in pieces already."""
PICTURE_BYTES = 3
"""Of a pixel."""
LATENT_BYTES = 16 * 4 / 256
"""Of a pixel: the tiny model's 16 channels in single precision, for 16×16 pixels."""
ROOM = 128 << 10

MEASURED = """
import json, sys, tracemalloc
import numpy as np
from hpcm_scale.codec import container
from hpcm_scale.codec.codec import Codec

path, memory, width, *heights = sys.argv[1:]
codec = Codec.load(path, engine="numpy", memory=int(memory))
codec.decode(codec.encode(np.zeros((64, 64, 3), np.uint8)))  # tables and weights are made once
tracemalloc.start()

def peak_of(work, *given):
    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    result = work(*given)
    return tracemalloc.get_traced_memory()[1] - before, result

found = []
for height in map(int, heights):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (height, int(width), 3), np.uint8)
    encoding, data = peak_of(codec.encode, pixels)
    decoding, _ = peak_of(codec.decode, data)
    found.append([container.read(data).header.tiles, encoding, decoding])
assert "torch" not in sys.modules
print(json.dumps(found))
"""


def measured(model: Path, memory: int) -> list[list[int]]:
    """Tiles and the most bytes held while encoding and decoding, of a picture and of its double."""
    arguments = [model, memory, WIDTH, ROWS, 2 * ROWS]
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *map(str, arguments)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.distributed
def test_memory_grows_by_the_picture_and_its_latents_alone(models: Path) -> None:
    model = models / "tiny.safetensors"
    small, large = measured(model, MEMORY)
    assert large[0] > small[0] > 1
    pixels = WIDTH * ROWS
    # The encoder holds picture and latents twice: as they are and, for their digests, as decoded.
    most = 2 * pixels * (PICTURE_BYTES + LATENT_BYTES) + ROOM
    for kind, ours, double in zip(("encoding", "decoding"), small[1:], large[1:], strict=True):
        print(f"{kind}: {ours} bytes, {double - ours} more for {pixels} pixels more")
        assert double - ours <= most
    # Not bounded, it would be far more: the test can fail.
    small, large = measured(model, 2 << 30)
    assert small[0] == large[0] == 1
    assert all(double - ours > 2 * most for ours, double in zip(small[1:], large[1:], strict=True))
