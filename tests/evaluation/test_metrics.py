"""PSNR and MS-SSIM against their definitions and published figures."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import convolve1d

from hpcm_scale.evaluation.metrics import LEAST_SIDE, decibels, ms_ssim
from hpcm_scale.units import mse_of, psnr_of


def _ms_ssim_by_definition(x: np.ndarray, y: np.ndarray) -> float:
    """Wang, Simoncelli and Bovik 2003, one plane at a time, with SciPy."""
    taps = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    taps /= taps.sum()

    def blur(plane):
        for axis in (0, 1):
            plane = convolve1d(plane, taps, axis)
        return plane[5:-5, 5:-5]

    values = []
    for plane in range(3):
        a, b = x[..., plane].astype(float), y[..., plane].astype(float)
        product = 1.0
        for scale, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
            ma, mb = blur(a), blur(b)
            va, vb, vab = blur(a * a) - ma**2, blur(b * b) - mb**2, blur(a * b) - ma * mb
            contrast = (2 * vab + (0.03 * 255) ** 2) / (va + vb + (0.03 * 255) ** 2)
            if scale == 4:
                luminance = (2 * ma * mb + 2.55**2) / (ma**2 + mb**2 + 2.55**2)
                product *= (luminance * contrast).mean() ** weight
                break
            product *= contrast.mean() ** weight
            a, b = (
                p[: p.shape[0] // 2 * 2, : p.shape[1] // 2 * 2]
                .reshape(p.shape[0] // 2, 2, p.shape[1] // 2, 2)
                .mean((1, 3))
                for p in (a, b)
            )
        values.append(product)
    return float(np.mean(values))


def test_ms_ssim_is_the_definition():
    rng = np.random.default_rng(0)
    rows = np.sin(np.arange(192)[:, None, None] / 9) * 60 + 128
    x = (rows + rng.normal(0, 12, (192, 224, 3))).clip(0, 255).astype(np.uint8)
    y = (x + rng.normal(0, 9, x.shape)).clip(0, 255).astype(np.uint8)
    assert ms_ssim(x, y) == pytest.approx(_ms_ssim_by_definition(x, y), abs=1e-6)
    assert ms_ssim(x, x) == pytest.approx(1, abs=1e-9)


def test_too_small_a_picture_has_no_ms_ssim():
    x = np.zeros((LEAST_SIDE, LEAST_SIDE, 3), np.uint8)
    assert ms_ssim(x, x) is not None
    assert ms_ssim(x[1:], x[1:]) is None
    assert decibels(None) is None


def test_decibels():
    x = np.zeros((2, 2, 3), np.uint8)
    assert mse_of(x, x + 5) == 25
    assert mse_of(x + 200, x) == 200**2  # no wrap in 8 bits
    assert psnr_of(x, x + 255) == 0
    assert psnr_of(x, x) == float("inf")
    assert decibels(0.99) == pytest.approx(20)


@pytest.mark.slow
def test_webp_on_kodak_is_what_compressai_published(kodak: Path, results: Path):
    """libwebp at quality 5, means over the 24 pictures: the first point of CompressAI's file."""
    published = json.loads((results / "peers" / "webp.json").read_text())["results"]
    figures = []
    for path in sorted(kodak.glob("*.png")):
        image, out = Image.open(path).convert("RGB"), io.BytesIO()
        image.save(out, "WEBP", quality=5)
        x, y = np.asarray(image), np.asarray(Image.open(out))
        figures.append((8 * out.tell() / (768 * 512), psnr_of(x, y), ms_ssim(x, y)))
    bpp, quality, similarity = np.mean(figures, axis=0)
    assert bpp == pytest.approx(published["bpp"][0], rel=1e-6)
    assert quality == pytest.approx(published["psnr-rgb"][0], abs=1e-5)
    assert similarity == pytest.approx(published["ms-ssim-rgb"][0], abs=1e-5)
