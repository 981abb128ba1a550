"""Pixels of every mode that Pillow has, as 8-bit grey or RGB."""

from typing import NamedTuple

import numpy as np
from PIL import Image

from hpcm_scale.codec.metadata import pnm
from hpcm_scale.errors import DataError

_WITHOUT_PROFILE = ("CMYK", "LAB", "HSV")
"""Modes that are converted to RGB by fixed rules, not by the picture's profile."""


class Pixels(NamedTuple):
    """8-bit pixels, and what became of the original's."""

    values: np.ndarray
    """(H, W) grey or (H, W, 3) RGB, uint8."""
    alpha: np.ndarray | None
    """(H, W) uint8; None for an opaque picture."""
    converted_from: str | None = None
    """A mode whose profile no longer fits."""


def of_image(image: Image.Image, highest: int = 65535, min_is_white: bool = False) -> Pixels:
    """The pixels of a PIL image.

    Args:
        highest: the level of white, for images of more than 8 bits.
        min_is_white: 0 is white, in images of more than 8 bits.

    Raises:
        DataError: if its mode has no 8-bit meaning; without its name.
    """
    mode = image.mode
    if mode.startswith("I"):
        if "transparency" in image.info:
            raise DataError(
                "marks one of its 16-bit greys as transparent; convert it to 8 bits first"
            )
        levels = np.asarray(image)
        if levels.min() < 0 or levels.max() > highest:
            raise DataError(
                f"has values outside {highest.bit_length()} bits; convert it to 8 bits first"
            )
        levels = levels.astype(np.int32)
        return Pixels(_eight_bits(highest - levels if min_is_white else levels, highest), None)
    if mode == "F":
        raise DataError(
            "has floating-point values; convert it to unsigned integers of 8 or 16 bits first"
        )
    if mode in _WITHOUT_PROFILE:
        return Pixels(np.asarray(image.convert("RGB")), None, mode)
    image = _plain(image)
    alpha = None
    if image.mode in ("LA", "RGBA"):
        alpha = visible(np.asarray(image.getchannel("A")))
        image = image.convert(image.mode[:-1])
    return Pixels(np.asarray(image), alpha)


def of_samples(samples: pnm.Samples) -> Pixels:
    """The pixels of a Netpbm file."""
    values = samples.values
    if samples.highest != 255:
        # Beyond the maximum is an error that other readers take for white.
        bounded = np.minimum(values, samples.highest)
        values = _eight_bits(bounded.astype(np.int32), samples.highest)
    colours = values.shape[2] - (values.shape[2] in (2, 4))
    alpha = visible(values[..., colours]) if colours < values.shape[2] else None
    pixels = values[..., 0] if colours == 1 else values[..., :3]
    return Pixels(np.ascontiguousarray(pixels), alpha)


def visible(alpha: np.ndarray) -> np.ndarray | None:
    """An alpha plane; None if it is opaque throughout."""
    return None if (alpha == 255).all() else np.ascontiguousarray(alpha)


def _eight_bits(levels: np.ndarray, highest: int) -> np.ndarray:
    """Levels up to `highest`, rounded to the nearest of 256; white stays white."""
    return ((levels * 255 + highest // 2) // highest).astype(np.uint8)


def _plain(image: Image.Image) -> Image.Image:
    """The image in mode L, LA, RGB or RGBA."""
    mode = image.mode
    transparent = "transparency" in image.info
    if mode in ("1", "L"):
        return image.convert("LA" if transparent else "L")
    if mode in ("P", "PA"):
        return image.convert("RGBA" if image.has_transparency_data else "RGB")
    if mode == "RGB" and transparent:
        return image.convert("RGBA")
    target = {"La": "LA", "RGBa": "RGBA", "RGBX": "RGB", "YCbCr": "RGB"}.get(mode, mode)
    if target not in ("L", "LA", "RGB", "RGBA"):
        raise DataError(f"has mode {mode}; convert it to 8-bit grey or RGB first")
    return image if target == mode else image.convert(target)
