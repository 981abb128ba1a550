"""Pictures in and out: files or pipes to 8-bit RGB, and back in the format a name asks for."""

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from hpcm_scale.codec.container import LARGEST_SIDE
from hpcm_scale.errors import BitstreamError, DataError

MAX_PIXELS = 1 << 29
"""Larger pictures are refused before their pixels are read; 16384×16384 is half of this."""
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
    struct.error,
    zlib.error,
)
"""Errors that Pillow raises for one damaged file or another."""
_ORIENTATION = 0x0112  # EXIF tag
READABLE = ("PNG", "JPEG", "WEBP", "PPM", "BMP", "TIFF", "GIF")
WRITERS = {
    ".png": ("PNG", {}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".webp": ("WEBP", {"lossless": True}),
    ".ppm": ("PPM", {}),
    ".pgm": ("PPM", {}),
    ".bmp": ("BMP", {}),
    ".tif": ("TIFF", {}),
    ".tiff": ("TIFF", {}),
}
"""Pillow's format and options for each extension; lossless where the format can be."""


@dataclass(frozen=True)
class Picture:
    """A picture as the codec sees it: 8 bits a channel, upright."""

    pixels: np.ndarray
    """(H, W, 3) RGB or (H, W) grey, uint8."""
    alpha: np.ndarray | None = None
    """(H, W) uint8; None for an opaque picture."""
    icc: bytes | None = None
    """ICC profile of `pixels`."""
    notices: tuple[str, ...] = field(default=(), compare=False)
    """Losses on the way in, for the user to know."""

    @property
    def height(self) -> int:
        """Pixels from top to bottom."""
        return self.pixels.shape[0]

    @property
    def width(self) -> int:
        """Pixels from left to right."""
        return self.pixels.shape[1]

    def to_pil(self) -> Image.Image:
        """The picture as mode L, LA, RGB or RGBA, with its ICC profile in `info`."""
        image = Image.fromarray(self.pixels)
        if self.alpha is not None:
            image.putalpha(Image.fromarray(self.alpha))
        if self.icc is not None:
            image.info["icc_profile"] = self.icc
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
    with _own_size_limit():
        try:
            return picture_of(Image.open(io.BytesIO(contents), formats=READABLE), name)
        except UnidentifiedImageError:
            raise DataError(
                f"{name}: is not an image this program reads ({', '.join(READABLE)})"
            ) from None
        except _DAMAGE as error:
            raise DataError(f"{name}: is a damaged image ({error})") from None


def picture_of(image: Image.Image | np.ndarray, name: str = "image") -> Picture:
    """A picture from what Python code holds: a PIL image, or a uint8 array (H, W[, 1, 3 or 4]).

    Raises:
        DataError: for a mode, type or shape that has no 8-bit meaning.
    """
    if isinstance(image, np.ndarray):
        image = _image_of(image, name)
    check_size(image.width, image.height, name)
    notices = []
    if (frames := getattr(image, "n_frames", 1)) > 1:
        notices.append(f"only the first of {frames} frames is kept")
    icc = image.info.get("icc_profile") or None
    if _has_16_bits(image):
        notices.append("16 bits a channel are reduced to 8")
    # Pillow copies an image that is upright already, and this one may be large.
    if image.getexif().get(_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        notices.append(f"{image.mode} is converted to RGB without its profile")
        image, icc = image.convert("RGB"), None
    image = _grey_or_rgb(image, name)

    alpha = None
    if image.mode in ("LA", "RGBA"):
        plane = np.asarray(image.getchannel("A"))
        alpha = None if (plane == 255).all() else plane
        image = image.convert(image.mode[:-1])
    if icc is not None and len(icc) > LARGEST_ICC:
        notices.append(f"its ICC profile of {len(icc)} bytes is left out")
        icc = None
    return Picture(np.asarray(image), alpha, icc, tuple(notices))


def _image_of(array: np.ndarray, name: str) -> Image.Image:
    """A PIL image of an array's pixels, in mode L, RGB or RGBA."""
    if array.dtype != np.uint8 or array.ndim not in (2, 3):
        raise DataError(
            f"{name}: is {array.dtype} of shape {array.shape}; give uint8, (H, W) or (H, W, 3)"
        )
    if 0 in array.shape or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise DataError(f"{name}: has shape {array.shape}; give (H, W), (H, W, 3) or (H, W, 4)")
    return Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array)


def _grey_or_rgb(image: Image.Image, name: str) -> Image.Image:
    """The image in mode L, LA, RGB or RGBA."""
    if image.mode.startswith("I"):
        if "transparency" in image.info:
            raise DataError(
                f"{name}: marks one of its 16-bit greys as transparent; convert it to 8 bits first"
            )
        levels = np.asarray(image).astype(np.int64)
        if levels.min() < 0 or levels.max() > 65535:
            raise DataError(f"{name}: has values outside 16 bits; convert it to 8 bits first")
        # 65535 / 255 = 257: rounds to nearest, and takes white to white.
        return Image.fromarray(((levels + 128) // 257).astype(np.uint8))
    if image.mode == "1":
        return image.convert("L")
    if image.mode in ("P", "PA") or "transparency" in image.info:
        transparent = image.mode == "PA" or "transparency" in image.info
        return image.convert("RGBA" if transparent else "RGB")
    if image.mode == "RGBX":
        return image.convert("RGB")
    if image.mode not in ("L", "LA", "RGB", "RGBA"):
        raise DataError(f"{name}: has mode {image.mode}; convert it to 8-bit grey or RGB first")
    return image


def check_size(width: int, height: int, name: str) -> None:
    """Raises DataError unless a picture of this size can be coded."""
    if max(width, height) > LARGEST_SIDE or width * height > MAX_PIXELS:
        raise DataError(
            f"{name}: {width}×{height} is above {MAX_PIXELS} pixels or {LARGEST_SIDE} a side; "
            "cut it into parts"
        )


def extension_writer(name: str) -> tuple[str, dict[str, object]]:
    """Pillow's format and options for a file name's extension.

    Raises:
        DataError: for an extension that is not one of `WRITERS`.
    """
    suffix = Path(name).suffix.lower()
    if suffix not in WRITERS:
        raise DataError(f"{name}: extension {suffix!r} is not one of {', '.join(WRITERS)}")
    return WRITERS[suffix]


def picture_bytes(picture: Picture, name: str) -> bytes:
    """The picture as an image file in the format of `name`'s extension.

    Raises:
        DataError: if that format is unknown or cannot hold the picture.
    """
    kind, options = extension_writer(name)
    if picture.alpha is not None and kind not in ("PNG", "WEBP", "TIFF"):
        raise DataError(f"{name}: {kind} has no alpha, which this picture has; write .png or .webp")
    if kind != "PPM" and picture.icc is not None:
        options = options | {"icc_profile": picture.icc}
    out = io.BytesIO()
    try:
        picture.to_pil().save(out, kind, **options)
    except (OSError, ValueError) as error:
        raise DataError(f"{name}: {kind} cannot hold this picture ({error})") from None
    return out.getvalue()


def pack_alpha(alpha: np.ndarray) -> bytes:
    """An alpha plane (H, W) uint8 as a greyscale PNG."""
    out = io.BytesIO()
    Image.fromarray(alpha).save(out, "PNG", optimize=True)
    return out.getvalue()


def unpack_alpha(section: bytes, width: int, height: int) -> np.ndarray:
    """The inverse of `pack_alpha`.

    Raises:
        BitstreamError: if it is not a greyscale PNG of that size.
    """
    with _own_size_limit():
        try:
            image = Image.open(io.BytesIO(section), formats=("PNG",))
            if image.size != (width, height) or image.mode != "L":
                raise BitstreamError(
                    f"has an alpha plane of {image.width}×{image.height}, mode {image.mode}, "
                    f"for a picture of {width}×{height}"
                )
            return np.asarray(image)
        except (OSError, SyntaxError, ValueError, EOFError, zlib.error) as error:
            raise BitstreamError(f"has a damaged alpha plane ({error})") from None


def pack_icc(icc: bytes) -> bytes:
    """An ICC profile, deflated."""
    return zlib.compress(icc, 9)


def unpack_icc(section: bytes) -> bytes:
    """The inverse of `pack_icc`.

    Raises:
        BitstreamError: if it is damaged or above `LARGEST_ICC` bytes.
    """
    inflate = zlib.decompressobj()
    try:
        icc = inflate.decompress(section, LARGEST_ICC)
    except zlib.error as error:
        raise BitstreamError(f"has a damaged ICC profile ({error})") from None
    if not inflate.eof or inflate.unused_data:
        raise BitstreamError(f"has a damaged ICC profile, or one above {LARGEST_ICC} bytes")
    return icc


def _has_16_bits(image: Image.Image) -> bool:
    """True if the file has 16 bits a channel; Pillow reads 16-bit RGB as 8-bit RGB silently."""
    raw = [str(tile.args) for tile in getattr(image, "tile", ())]
    return image.mode.startswith("I") or any(";16" in args for args in raw)


@contextmanager
def _own_size_limit() -> Iterator[None]:
    # Pillow's limit is a global of the process and lower than ours; `check_size` takes its place
    # between reading an image's header and its pixels.
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit
