"""Decoding of image files: bounded before it starts, and no further down than a crop needs."""

import hashlib
import struct
import warnings
import zlib
from io import BytesIO

import numpy as np
from PIL import Image

from hpcm_scale.data.augment import Crop
from hpcm_scale.errors import DataError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff")
ALPHA = ("RGBA", "LA", "PA", "La", "RGBa")
DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
# Pillow refuses to open anything above this itself; staying below keeps the refusal ours.
PIXEL_LIMIT = 178_000_000
# What Pillow and its decoders raise on damaged input; a damaged header shows as any of these.
DECODE_ERRORS = (OSError, ValueError, SyntaxError, EOFError, IndexError, struct.error, zlib.error,
                 MemoryError, OverflowError, TypeError, KeyError)  # fmt: skip

# Every use below is bounded by PIXEL_LIMIT or by the manifest's sizes.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class BadImage(Exception):
    """An image that cannot be used, with the reason: `kind` is what a report counts."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


def open_image(data: bytes, max_pixels: int = PIXEL_LIMIT) -> Image.Image:
    """The image with its header read and nothing decoded.

    Raises:
        BadImage: corrupt, or oversized.
    """
    try:
        image = Image.open(BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise BadImage("oversized", str(error)) from None
    except DECODE_ERRORS as error:
        # Pillow's message names a BytesIO object.
        detail = str(error).partition(" <_io")[0]
        raise BadImage("corrupt", detail or type(error).__name__) from None
    if image.width * image.height > max_pixels:
        size = f"{image.width}x{image.height}"
        raise BadImage("oversized", f"{size} is above {max_pixels} pixels")
    return image


def file_format(image: Image.Image) -> str | None:
    """The format of an opened file. A JPEG with more pictures behind it, as phones write with a
    thumbnail or a gain map, is a JPEG: its first picture is the photo."""
    return "JPEG" if image.format == "MPO" else image.format


def decode(image: Image.Image) -> Image.Image:
    """The same image with its pixels, as RGB.

    Raises:
        BadImage: corrupt, or of more than 8 bits a channel.
    """
    try:
        image.load()
        if image.mode in DEEP:
            # Pillow would clip them: 16-bit greys would become white.
            raise BadImage("unsupported", f"has more than 8 bits a channel (mode {image.mode})")
        return image if image.mode == "RGB" else image.convert("RGB")
    except DECODE_ERRORS as error:
        raise BadImage("corrupt", str(error) or type(error).__name__) from None


def check_plain(image: Image.Image) -> None:
    """Check, before it is decoded, that an image becomes RGB without losing anything.

    Raises:
        BadImage: several frames, more than 8 bits a channel, transparent pixels, or corrupt.
    """
    if file_format(image) != "JPEG" and getattr(image, "n_frames", 1) > 1:
        raise BadImage("unsupported", "has several frames")
    if image.mode in DEEP:
        raise BadImage("unsupported", f"has more than 8 bits a channel (mode {image.mode})")
    if image.mode in ALPHA or "transparency" in image.info:
        try:
            alpha = image.convert("RGBA").getchannel("A")
        except DECODE_ERRORS as error:
            raise BadImage("corrupt", str(error) or type(error).__name__) from None
        if np.asarray(alpha).min() < 255:
            raise BadImage("transparent", "has transparent pixels")


def to_array(image: Image.Image) -> np.ndarray:
    """(3, H, W) uint8 of an RGB image."""
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def decode_whole(data: bytes) -> np.ndarray:
    """The image as (3, H, W) uint8.

    Raises:
        BadImage: corrupt, or oversized.
    """
    return to_array(decode(open_image(data)))


def decode_crop(data: bytes, width: int, height: int, crop: Crop) -> np.ndarray:
    """A crop of the image as (3, side, side) uint8, decoding no rows far below it.

    Args:
        width, height: what the image must measure.
    Raises:
        BadImage: corrupt, oversized, or of another size.
    """
    image = open_image(data)
    if image.size != (width, height):
        raise BadImage(
            "corrupt",
            f"is {image.width}x{image.height}, the manifest says {width}x{height}",
        )
    shorter = shorten(data, image, crop.top + crop.side)
    if shorter is not None:
        image = open_image(shorter)
    pixels = decode(image).crop(crop.box)
    array = np.asarray(pixels)
    return np.ascontiguousarray((array[:, ::-1] if crop.mirrored else array).transpose(2, 0, 1))


def shorten(data: bytes, image: Image.Image, bottom: int) -> bytes | None:
    """The file with a smaller height in its header, so that decoding ends soon after `bottom`.

    Rows above `bottom` decode to the same bits. JPEG and PNG store rows from the top down, so a
    decoder that believes the image to be shorter stops there and skips the rest.

    Returns:
        None where the format does not allow it (WebP, interlaced PNG) or nothing would be saved.
    """
    if image.format == "PNG":
        if bottom >= image.height or image.info.get("interlace"):
            return None
        header = data[12:20] + struct.pack(">I", bottom) + data[24:29]  # "IHDR" .. interlace
        return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]
    if file_format(image) == "JPEG":
        # A block row is at most 32 pixels high (4:1 vertical subsampling), and the chroma of its
        # last rows is interpolated with the block row below: keep one more.
        rows = (bottom + 31) // 32 * 32 + 32
        if rows >= image.height:
            return None
        place = _jpeg_height_at(data)
        return None if place is None else data[:place] + struct.pack(">H", rows) + data[place + 2 :]
    return None


def _jpeg_height_at(data: bytes) -> int | None:
    """Offset of the height in a JPEG's frame header; None if there is none."""
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return at + 5
        at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    return None


def pixel_hash(image: Image.Image) -> str:
    """SHA-256 of an RGB image's size and pixels: the same for every lossless copy of it."""
    digest = hashlib.sha256(f"{image.width}x{image.height}".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


def image_suffix(name: str) -> str | None:
    """The suffix of a file name if it is an image's, in lower case, else None."""
    suffix = "." + name.rpartition(".")[2].lower()
    return suffix if suffix in SUFFIXES else None


def require_size(smallest: int, crop: int, where: str) -> None:
    """Check that crops fit into the smallest image.

    Raises:
        DataError: naming the smallest side.
    """
    if smallest < crop:
        raise DataError(
            f"{where}: data.crop is {crop} but the smallest image side is {smallest}; "
            f"pack (or index) with a min_side of {crop} or more, or lower data.crop"
        )
