"""Mutated files: every one is refused with a cause or decodes to the very picture it was made of.

HPCM_FUZZ=100000 python -m pytest tests/codec/test_fuzz.py     runs that many instead of 2000
"""

import os
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hpcm_scale.codec.codec import Codec
from hpcm_scale.errors import BitstreamError

MUTATIONS = int(os.environ.get("HPCM_FUZZ", "2000"))


def _mutated(data: bytes, others: list[bytes], rng: np.random.Generator) -> tuple[str, bytes]:
    """One kind of damage, by name, and the damaged file; half of them with a checksum that fits."""
    out = bytearray(data)
    kind = ("bits", "byte", "cut", "extend", "overwrite", "splice", "header", "insert")[
        rng.integers(8)
    ]
    at = int(rng.integers(len(out)))
    noise = rng.bytes(int(rng.integers(1, 9)))
    if kind == "bits":
        for bit in rng.integers(8 * len(out), size=rng.integers(1, 4)):
            out[bit // 8] ^= 1 << bit % 8
    elif kind == "byte":
        out[at] ^= int(rng.integers(1, 256))
    elif kind == "cut":
        del out[at:]
    elif kind == "extend":
        out += noise
    elif kind == "overwrite":
        out[at : at + len(noise)] = noise
    elif kind == "splice":
        other = others[rng.integers(len(others))]
        out[at:] = other[at:]
    elif kind == "header":
        out[int(rng.integers(3, 24))] = int(rng.integers(256))
    else:
        out[at:at] = noise
    if rng.random() < 0.5:
        out[-4:] = zlib.crc32(out[:-4]).to_bytes(4, "little")
        kind += ", resealed"
    return kind, bytes(out)


@pytest.fixture(scope="module")
def quick_codec(
    tmp_path_factory: pytest.TempPathFactory, make_model: Callable[..., object]
) -> Codec:
    """Without attention, sides need only be multiples of 128: a decode takes milliseconds."""
    path = tmp_path_factory.mktemp("fuzz") / "psi.safetensors"
    make_model(path, fusion="psi", latent_channels=8, name="psi")
    return Codec.load(path)


def test_no_mutated_file_passes_as_another_picture(
    quick_codec: Codec, make_photo: Callable[..., np.ndarray], tmp_path: Path
) -> None:
    codec, rng = quick_codec, np.random.default_rng(0)
    images = [Image.fromarray(make_photo(*size)) for size in ((40, 50), (64, 64), (90, 17))]
    images[1].info["icc_profile"] = b"profile"
    images[2].putalpha(Image.fromarray(make_photo(90, 17)[..., 0]))
    images.append(Image.fromarray(make_photo(33, 70)[..., 1]))
    files = [codec.encode(image) for image in images]
    pictures = [codec.decode(data) for data in files]

    outcomes, slowest = Counter(), 0.0
    for i in range(MUTATIONS):
        which = int(rng.integers(len(files)))
        kind, data = _mutated(files[which], files, rng)
        start = time.monotonic()
        try:
            found = codec.decode(data)
        except BitstreamError:
            outcomes[f"{kind}: refused"] += 1
        else:
            # An unchanged file, or a splice that made the whole of another.
            assert data in files, (i, kind)
            same = pictures[files.index(data)]
            assert found.mode == same.mode
            assert np.array_equal(found, same)
            outcomes[f"{kind}: the same picture"] += 1
        slowest = max(slowest, time.monotonic() - start)
    assert slowest < 20  # a bound on hanging, not a measure of speed
    for kind, count in sorted(outcomes.items()):
        print(f"{kind}: {count}")
    print(f"slowest {slowest:.2f} s")


def test_every_single_bit_and_every_length_is_checked(
    quick_codec: Codec, make_photo: Callable[..., np.ndarray]
) -> None:
    data = quick_codec.encode(make_photo(20, 20))
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BitstreamError):
            quick_codec.decode(bytes(damaged))
    for length in range(len(data)):
        with pytest.raises(BitstreamError):
            quick_codec.decode(data[:length])
