"""Preparation of one source file: a sample of a shard, or the reason why it is left out."""

import re
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image

from hpcm_scale.data.images import (
    DEEP,
    BadImage,
    check_plain,
    decode,
    file_format,
    open_image,
    pixel_hash,
)
from hpcm_scale.data.recipe import Recipe

KEPT = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
HASH_DIGITS = 16
"""Hexadecimal digits of the hash of a sample's pixels, in its key."""
WEBP_SIDE = 16383
"""Longest side of a WebP in pixels."""
FILE_LIMIT = 1 << 30  # bytes; read whole into memory, once for each core


@dataclass(frozen=True)
class Prepared:
    """A sample ready to be written."""

    file: str
    """The source file's path inside the source."""
    key: str
    suffix: str
    data: bytes
    width: int
    height: int
    hash: str
    """SHA-256 of the source's RGB pixels, before any scaling: identifies the content."""
    val: bool


@dataclass(frozen=True)
class Skipped:
    """A file left out: the kind is counted, the detail is for the report."""

    file: str
    kind: str
    detail: str


def prepare(path: Path, name: str, recipe: Recipe) -> Prepared | Skipped:
    """Read and check an image, and re-encode it where the recipe asks for it.

    Args:
        name: the file's path inside the source, for the report.
    """
    try:
        return _prepare(path, name, recipe)
    except BadImage as error:
        return Skipped(name, error.kind, str(error))
    except OSError as error:
        return Skipped(name, "corrupt", f"cannot be read ({error.strerror})")


def _prepare(path: Path, name: str, recipe: Recipe) -> Prepared:
    if path.stat().st_size > FILE_LIMIT:
        raise BadImage("oversized", f"the file is above {FILE_LIMIT} bytes")
    data = path.read_bytes()
    source = open_image(data, recipe.max_pixels)
    kind = file_format(source)
    scale = recipe.jpeg_downscale if kind == "JPEG" else 1.0
    width, height = round(source.width * scale), round(source.height * scale)
    if min(width, height) < recipe.min_side:
        raise BadImage("tiny", f"{width}x{height} is below {recipe.min_side} on a side")
    image = _as_rgb(source, recipe)
    digest = pixel_hash(image)
    if scale < 1:
        image = image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
    same = scale == 1 and source.mode == "RGB" and image.info.get("transparency") is None
    if recipe.format == "keep" and same and kind in KEPT:
        suffix = KEPT[kind]
    else:
        fits = max(image.size) <= WEBP_SIDE
        suffix = "webp" if recipe.format == "webp" and fits else "png"
        data = _encode(image, suffix)
    val = path.stem in recipe.val.names or int(digest[:16], 16) < recipe.val.fraction * 2**64
    # The hash makes the key unique; the stem is there for people, in letters safe in any tar.
    stem = re.sub("[^A-Za-z0-9_-]+", "_", path.stem)[:60]
    return Prepared(
        name, f"{stem}-{digest[:HASH_DIGITS]}", suffix, data, width, height, digest, val
    )


def _as_rgb(image: Image.Image, recipe: Recipe) -> Image.Image:
    """The decoded image as RGB.

    Raises:
        BadImage: where that would lose something, or the recipe does not want it.
    """
    if recipe.non_rgb == "skip" and image.mode not in ("RGB", *DEEP):
        raise BadImage("non-RGB", f"mode {image.mode}")
    check_plain(image)
    return decode(image)


def _encode(image: Image.Image, suffix: str) -> bytes:
    """The pixels without loss and without the metadata of the source."""
    bare = Image.frombytes("RGB", image.size, image.tobytes())
    buffer = BytesIO()
    if suffix == "webp":
        bare.save(buffer, "WEBP", lossless=True, quality=80, method=4)
    else:
        bare.save(buffer, "PNG")
    return buffer.getvalue()
