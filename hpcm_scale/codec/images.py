"""Pictures in: files, pipes and Python's images to 8-bit RGB or grey, upright, with their tags."""

import logging
import re
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from hpcm_scale.codec import pixel_modes
from hpcm_scale.codec.image_files import is_turned, read_file, size_fault
from hpcm_scale.codec.metadata import FileParts, Metadata, fitting_profile, tiff_block
from hpcm_scale.codec.metadata.tags import is_rgb_profile
from hpcm_scale.codec.pixel_modes import Pixels
from hpcm_scale.errors import DataError, one_line

# Pillow logs some faults as well as raising them; one line is enough.
logging.getLogger("PIL").addHandler(logging.NullHandler())

LARGEST_ICC = 4 << 20
"""Most bytes of an ICC profile."""

_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
)
"""Errors that Pillow and its plugins raise for one damaged file or another."""
_XMP_TURN = re.compile(rb"""(tiff:Orientation(?:>|\s*=\s*["']))[2-8]""")
_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: x.swapaxes(0, 1)[:, ::-1],
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: x.swapaxes(0, 1)[::-1],
}
"""EXIF orientation -> what makes pixels (H, W, ...) that lie so upright."""


@dataclass(frozen=True)
class Picture:
    """A picture as the codec sees it: 8 bits a channel, upright."""

    pixels: np.ndarray
    """(H, W, 3) RGB or (H, W) grey, uint8."""
    alpha: np.ndarray | None = None
    """(H, W) uint8; None for an opaque picture."""
    icc: bytes | None = None
    """ICC profile of `pixels`; a grey picture may have one for RGB."""
    notices: tuple[str, ...] = field(default=(), compare=False)
    """Losses on the way in, for the user to know."""
    metadata: Metadata = field(default_factory=Metadata)
    """Tags other than the ICC profile."""

    @property
    def height(self) -> int:
        """Pixels from top to bottom."""
        return self.pixels.shape[0]

    @property
    def width(self) -> int:
        """Pixels from left to right."""
        return self.pixels.shape[1]

    def to_pil(self) -> Image.Image:
        """The picture as mode L, LA, RGB or RGBA, with its profile and tags in `info`."""
        image = Image.fromarray(self.pixels)
        if self.pixels.ndim == 2 and is_rgb_profile(self.icc):
            image = image.convert("RGB")
        if self.alpha is not None:
            image.putalpha(Image.fromarray(self.alpha))
        tags = {"icc_profile": self.icc} | {
            name: getattr(self.metadata, name) for name in ("exif", "xmp", "dpi")
        }
        image.info |= {name: value for name, value in tags.items() if value is not None}
        return image


def read_picture(source: Path | str | bytes, name: str | None = None) -> Picture:
    """A picture from a file, or from the bytes of one.

    Args:
        source: path, or the contents of an image file.
        name: what errors call it; the path unless told.

    Raises:
        DataError: if it is missing, damaged, too large or of a kind that cannot be coded.
    """
    name = name or str(source)
    try:
        contents = source if isinstance(source, bytes) else Path(source).read_bytes()
    except OSError as error:
        raise DataError(f"{name}: cannot be read ({error.strerror})") from None
    with own_size_limit(), warnings.catch_warnings(action="ignore"):
        try:
            return _picture(*read_file(contents, name))
        except DataError as error:
            raise DataError(f"{name}: {error}") from None
        except _DAMAGE as error:
            reason = one_line(error) or type(error).__name__
            raise DataError(f"{name}: is a damaged image ({reason})") from None


def picture_of(image: Image.Image | np.ndarray) -> Picture:
    """A picture from what Python code holds: a PIL image, or a uint8 array (H, W[, 1, 3 or 4]).

    Raises:
        DataError: for a mode, type or shape that has no 8-bit meaning.
    """
    if isinstance(image, np.ndarray):
        image = _image_of(image)
    check_size(image.width, image.height, "image")
    parts = FileParts(b"", bits=16 if _has_16_bits(image) else 8)
    if (frames := getattr(image, "n_frames", 1)) > 1:
        parts.notices.append(f"only the first of {frames} frames is kept")
    parts.keep_info(image.info)
    parts.orientation = 1 if is_turned(image) else None
    try:
        return _picture(parts, pixel_modes.of_image(image))
    except DataError as error:
        raise DataError(f"image: {error}") from None


def check_size(width: int, height: int, name: str) -> None:
    """Raises DataError unless a picture of this size can be coded."""
    if fault := size_fault(width, height):
        raise DataError(f"{name}: {fault}")


def _picture(parts: FileParts, pixels: Pixels) -> Picture:
    """The picture of a file taken apart: upright, with the tags that hold for it."""
    notices = list(parts.notices)
    if parts.bits > 8:
        notices.append(f"{parts.bits} bits a channel are reduced to 8")
    icc = parts.icc
    if pixels.converted_from is not None:
        notices.append(f"{pixels.converted_from} is converted to RGB without its profile")
        icc = None
    icc, unfit = fitting_profile(icc, grey=pixels.values.ndim == 2)
    if unfit is not None:
        notices.append(unfit)
    if icc is not None and len(icc) > LARGEST_ICC:
        notices.append(f"its ICC profile of {len(icc)} bytes is left out")
        icc = None
    metadata = parts.metadata
    turn = parts.orientation or tiff_block.orientation_of(metadata.exif)
    if metadata.exif is not None:
        metadata = replace(metadata, exif=tiff_block.upright(metadata.exif))
    if turn != 1 and metadata.xmp is not None:
        metadata = replace(metadata, xmp=_XMP_TURN.sub(rb"\g<1>1", metadata.xmp))
    if turn > 4 and metadata.dpi is not None:
        metadata = replace(metadata, dpi=metadata.dpi[::-1])
    upright = np.ascontiguousarray(_UPRIGHT[turn](pixels.values))
    alpha = None if pixels.alpha is None else np.ascontiguousarray(_UPRIGHT[turn](pixels.alpha))
    return Picture(upright, alpha, icc, tuple(notices), metadata)


def _image_of(array: np.ndarray) -> Image.Image:
    """A PIL image of an array's pixels, in mode L, RGB or RGBA."""
    if array.dtype != np.uint8 or array.ndim not in (2, 3):
        raise DataError(
            f"image: is {array.dtype} of shape {array.shape}; give uint8, (H, W) or (H, W, 3)"
        )
    if 0 in array.shape or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise DataError(f"image: has shape {array.shape}; give (H, W), (H, W, 3) or (H, W, 4)")
    return Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array)


def _has_16_bits(image: Image.Image) -> bool:
    """True if the file has 16 bits a channel; Pillow reads 16-bit RGB as 8-bit RGB silently."""
    raw = [str(tile[3]) for tile in getattr(image, "tile", ())]
    return image.mode.startswith("I") or any(";16" in args for args in raw)


@contextmanager
def own_size_limit() -> Iterator[None]:
    """Put `check_size` in the place of Pillow's limit of pixels."""
    # Pillow's limit is a global of the process and lower than ours; `check_size` takes its place
    # between reading an image's header and its pixels.
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit
