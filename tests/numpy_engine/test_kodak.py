"""Kodak by bundled models: either engine decodes what either made, symbol by symbol."""

import os
from pathlib import Path

import numpy as np
import pytest

from hpcm_scale.codec.codec import Codec
from hpcm_scale.codec.images import read_picture
from hpcm_scale.units import psnr_of
from hpcm_scale.weights.stored_model import bundled_model
from tests.codec.conftest import watch_symbols

KODAK = Path(os.environ.get("HPCM_SHARED") or Path(__file__).parents[3] / "shared") / "data/kodak"


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.skipif(not KODAK.is_dir(), reason=f"no folder {KODAK} (HPCM_SHARED, development data)")
@pytest.mark.parametrize("model", ["w0.125-0.013", "compact"])
def test_kodak_has_the_same_symbols_in_both_engines(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watch_symbols(monkeypatch)
    engines = [Codec.load(bundled_model(model), engine=name) for name in ("torch", "numpy")]
    pictures = sorted(KODAK.glob("*.png"))
    assert len(pictures) == 24
    for path in pictures:
        picture = read_picture(path)
        for maker in engines:
            seen.clear()
            data = maker.compress(picture).data
            made = seen[:]
            for reader in engines:
                seen.clear()
                reader.decompress(data)
                assert len(seen) == len(made)
                assert all(np.array_equal(a, b) for a, b in zip(seen, made, strict=True)), path
        print(f"{path.stem}: {len(made)} arrays of symbols, {len(data)} bytes")


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.skipif(not KODAK.is_dir(), reason=f"no folder {KODAK} (HPCM_SHARED, development data)")
def test_exact_pixels_of_kodak_are_as_good_in_both_engines() -> None:
    codecs = [
        Codec.load(bundled_model("compact"), engine=engine, exact_pixels=exact)
        for engine, exact in (("torch", False), ("torch", True), ("numpy", True))
    ]
    for path in sorted(KODAK.glob("*.png")):
        picture = read_picture(path)
        quality = 100 if path.stem < "kodim12" else 30
        files = [codec.encode(picture.pixels, quality) for codec in codecs[:2]]
        files.append(files[1])  # what the other engine makes may have other symbols
        plain, exact, ours = (np.asarray(c.decode(f)) for c, f in zip(codecs, files, strict=True))
        assert np.array_equal(exact, ours)
        won = psnr_of(picture.pixels, exact) - psnr_of(picture.pixels, plain)
        print(f"{path.stem}: {won:+.4f} dB")
        assert abs(won) < 0.02
