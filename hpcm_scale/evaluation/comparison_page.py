"""comparison.html: a model beside the codecs people use, at equal file size, in one file.

Codings that browsers read are embedded as they are; others, and the model's, as lossless WebP.
"""

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from hpcm_scale import __version__
from hpcm_scale.codec.images import read_picture
from hpcm_scale.evaluation.codecs import PILLOW, PillowCodec, Setting
from hpcm_scale.evaluation.evaluate import rgb
from hpcm_scale.evaluation.maps import bit_map, coloured, error_map
from hpcm_scale.evaluation.metrics import decibels, ms_ssim
from hpcm_scale.files import atomic_write
from hpcm_scale.models.codec_network import CodecNetwork
from hpcm_scale.units import psnr_of
from hpcm_scale.weights.model_file import load_model

BROWSERS_READ = {"JPEG": "image/jpeg", "WEBP": "image/webp", "AVIF": "image/avif"}
NAMES = {"jpeg": "JPEG", "webp": "WebP", "jpeg2000": "JPEG 2000", "avif": "AVIF", "jxl": "JPEG XL"}
ERROR_HIGH = 32
"""Levels of 255 at the top of the error maps' colours."""
TRIALS = 12
"""Qualities tried in search of a file size."""


def write_page(
    subject: Setting,
    rivals: Sequence[str],
    images: Sequence[Path],
    device: str | torch.device,
    memory: int,
    target: Path,
) -> None:
    """Write the page.

    Args:
        subject: of a model.
        rivals: codecs of `PILLOW`, each shown at the quality whose file is nearest in size.
        images: pictures to show.

    Raises:
        HpcmError: if a picture cannot be read or coded.
    """
    assert subject.model is not None  # its caller chooses one of a model
    coder, label = subject.open(), subject.model.label
    network = load_model(subject.model.path, device).network
    pictures = []
    for path in images:
        pixels = rgb(read_picture(path))
        data = coder.encode(pixels).value
        decoded = coder.decode(data).value
        views = [_view(f"HPCM {label}", pixels, decoded, len(data), None)]
        for name in rivals:
            coded = nearest_in_size(PILLOW[name], pixels, len(data))
            views.append(_rival(NAMES[name], PILLOW[name], pixels, coded))
        pictures.append(_picture(path.name, pixels, views, network, memory))
    values = {"pictures": pictures, "error_high": ERROR_HIGH, "program": __version__}
    template = (Path(__file__).parent / "comparison.html").read_text()
    # Within a script element only "</" could end it early.
    script = json.dumps(values).replace("</", "<\\/")
    atomic_write(target, template.replace("/*DATA*/null", script))


def nearest_in_size(codec: PillowCodec, pixels: np.ndarray, size: int) -> bytes:
    """The coding whose length is nearest to `size` bytes, in ratio, by bisection of the quality."""
    smallest, largest = codec.limits
    low, high = 0.0, 1.0
    tried: dict[str, bytes] = {}
    best = b""
    for _ in range(TRIALS):
        middle = (low + high) / 2
        # In equal ratios where the quality is one, else in equal steps.
        quality = (
            smallest * (largest / smallest) ** middle
            if smallest > largest
            else smallest + (largest - smallest) * middle
        )
        options = str(codec.options(quality))
        if options not in tried:
            tried[options] = codec.encode(pixels, quality)
        data = tried[options]
        if not best or abs(np.log(len(data) / size)) < abs(np.log(len(best) / size)):
            best = data
        low, high = (low, middle) if len(data) > size else (middle, high)
    return best


def _rival(name: str, codec: PillowCodec, pixels: np.ndarray, data: bytes) -> dict[str, Any]:
    kind = BROWSERS_READ.get(codec.format)
    source = None if kind is None else _data_url(data, kind)
    return _view(name, pixels, codec.decode(data), len(data), source)


def _view(
    name: str, pixels: np.ndarray, decoded: np.ndarray, size: int, source: str | None
) -> dict[str, Any]:
    similarity = decibels(ms_ssim(pixels, decoded))
    errors = coloured(error_map(pixels, decoded), ERROR_HIGH, "magma")
    return {
        "name": name,
        "bytes": size,
        "bpp": 8 * size / (pixels.shape[0] * pixels.shape[1]),
        "psnr": psnr_of(pixels, decoded),
        "ms_ssim_db": similarity,
        "source": source or _webp(decoded, lossless=True),
        "errors": _webp(errors, quality=75),
    }


def _picture(
    name: str,
    pixels: np.ndarray,
    views: list[dict[str, Any]],
    network: CodecNetwork,
    memory: int,
) -> dict[str, Any]:
    costs = bit_map(network, pixels, memory)
    high = float(np.percentile(costs, 99.5))
    # The crops begin where bits are densest over some blocks: there the codecs differ.
    dense = torch.nn.functional.avg_pool2d(
        torch.from_numpy(costs)[None, None], 5, 1, padding=2, count_include_pad=False
    )
    row, column = divmod(int(dense.argmax()), costs.shape[1])
    return {
        "name": name,
        "width": pixels.shape[1],
        "height": pixels.shape[0],
        "original": _webp(pixels, lossless=True),
        "views": views,
        "bits": _webp(coloured(costs, high, "viridis"), lossless=True),
        "bits_high": high,
        "blocks": [costs.shape[1], costs.shape[0]],
        "focus": [16 * column + 8, 16 * row + 8],
    }


def _webp(pixels: np.ndarray, **options: Any) -> str:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "WEBP", **options)
    return _data_url(out.getvalue(), "image/webp")


def _data_url(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
