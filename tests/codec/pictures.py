"""Picture files made for tests: blocks and chunks by hand, every mode of Pillow's."""

import io
import struct
import warnings
import zlib

import numpy as np
from PIL import Image, ImageCms

MODES = (
    "1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV",
    "I;16", "I;16B",
)  # fmt: skip
"""Modes that have an 8-bit meaning."""
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6">\xc3\xa9</a></x:xmpmeta>'
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
CAMERA = 0x0110


def exif_block(
    orientation: int | None = None,
    order: str = "<",
    tags: tuple[tuple[int, int, int, bytes], ...] = (),
    kind: int = 3,
) -> bytes:
    """An EXIF block: a camera's name, an orientation and other tags (tag, kind, count, values)."""
    entries = [(CAMERA, 2, 12, b"Test camera\0"), *tags]
    if orientation is not None:
        code = {1: "B", 3: "H", 4: "I"}[kind]
        entries.append((0x0112, kind, 1, struct.pack(order + code, orientation)))
    entries.sort()
    rows, values = b"", b""
    start = 8 + 2 + 12 * len(entries) + 4
    for tag, kind_, count, body in entries:
        if len(body) <= 4:
            place = body.ljust(4, b"\0")
        else:
            place = struct.pack(order + "I", start + len(values))
            values += body + bytes(len(body) % 2)
        rows += struct.pack(order + "HHI", tag, kind_, count) + place
    mark = b"II*\0" if order == "<" else b"MM\0*"
    head = mark + struct.pack(order + "IH", 8, len(entries))
    return head + rows + bytes(4) + values


def odd_tags(order: str = "<") -> dict[str, tuple[int, int, int, bytes]]:
    """Tags that programs stumble over, by what is wrong with them."""
    return {
        "a float that is no number": (0xA432, 11, 1, struct.pack(order + "f", float("nan"))),
        "a negative long": (0x8827, 4, 1, struct.pack(order + "i", -1)),
        "text in a rational": (0x829A, 5, 1, b"1/250\0\0\0"),
        "a rational without denominator": (0x829D, 5, 1, struct.pack(order + "II", 28, 0)),
        "an unknown kind": (0x9999, 77, 3, b"abc"),
        "values outside the block": (0x927C, 7, 1 << 30, b"\0\0\0\x7f"),
    }


def profile(space: bytes, size: int = 200) -> bytes:
    """What begins as an ICC profile for that colour space."""
    head = struct.pack(">I", size) + b"test" + bytes(8) + space + b"XYZ " + bytes(12) + b"acsp"
    return head.ljust(size, b"\1")


def chunk(kind: bytes, body: bytes, crc: int | None = None) -> bytes:
    """A PNG chunk, with its own CRC unless told."""
    right = zlib.crc32(kind + body)
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc or right)


def with_chunks(png: bytes, *chunks: bytes) -> bytes:
    """A PNG file with chunks behind its header."""
    return png[:33] + b"".join(chunks) + png[33:]


def chunks_of(png: bytes) -> dict[bytes, bytes]:
    """The chunks of a PNG file, the last of each kind."""
    found, at = {}, 8
    while at < len(png):
        size, kind = struct.unpack_from(">I4s", png, at)
        found[kind] = png[at + 8 : at + 8 + size]
        at += 12 + size
    return found


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    """An image file as Pillow writes it."""
    out = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):
        image.save(out, kind, **options)
    return out.getvalue()


def image_of(mode: str, height: int, width: int, seed: int = 0) -> Image.Image:
    """An image of a mode, of smooth noise so that lossy formats keep something of it."""
    rng = np.random.default_rng(seed)
    rgba = rng.integers(0, 256, (height, width, 4), dtype=np.uint8)
    if mode.startswith("I;16"):
        levels = rng.integers(0, 65536, (height, width), dtype=np.uint16)
        image = Image.new(mode, (width, height))
        image.frombytes(levels.astype(">u2" if mode == "I;16B" else "<u2").tobytes())
        return image
    image = Image.fromarray(rgba)
    if mode == "LAB":
        profiles = (ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"))
        transform = ImageCms.buildTransform(*profiles, "RGB", "LAB")
        return ImageCms.applyTransform(image.convert("RGB"), transform)
    if mode in ("La", "LA", "PA"):
        grey = image.convert("LA")
        return grey if mode == "LA" else grey.convert(mode)
    return image.convert(mode) if mode in ("RGBA", "RGBa") else image.convert("RGB").convert(mode)
