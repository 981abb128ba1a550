"""Every mode and format that Pillow writes, read as programs that are not Pillow read it.

The other readers: libpng, libjpeg-turbo, libwebp, libavif, OpenJPEG, libjxl and giflib by
imagecodecs, tifffile for TIFF, and a few lines here for Netpbm and TGA.

HPCM_FUZZ=50000 python -m pytest tests/codec/test_formats.py     tries that many, not 2000
"""

import io
import os
import re
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from hpcm_scale.codec.images import Picture, read_picture
from hpcm_scale.errors import DataError
from tests.codec.pictures import MODES, image_of, saved

ic = pytest.importorskip("imagecodecs", reason="imagecodecs, the independent reader")
tifffile = pytest.importorskip("tifffile", reason="tifffile, the independent reader")

EXAMPLES = int(os.environ.get("HPCM_FUZZ", "2000"))
LOSSLESS = {"WEBP": {"lossless": True, "exact": True}, "JXL": {"lossless": True}}


def _tiff(data: bytes) -> np.ndarray:
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[0]
        pixels = page.asarray()
        if page.photometric == tifffile.PHOTOMETRIC.PALETTE:
            colours = (page.colormap >> 8).T.astype(np.uint8)
            alpha = pixels[..., 1:] if pixels.ndim == 3 else pixels[..., :0]
            index = pixels[..., 0] if pixels.ndim == 3 else pixels
            return np.dstack([colours[index], alpha]) if alpha.size else colours[index]
        if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
            return ~pixels
        if pixels.ndim == 3 and pixels.shape[2] == 4 and page.extrasamples in ((0,), ()):
            return pixels[..., :3]
        return pixels


def _netpbm(data: bytes) -> np.ndarray:
    found = re.match(rb"(P[456])\n(\d+) (\d+)\n(?:(\d+)\n)?", data)
    kind, width, height, highest = found.groups()
    body, sides = data[found.end() :], (int(height), int(width))
    if kind == b"P4":
        bits = np.unpackbits(np.frombuffer(body, np.uint8).reshape(sides[0], -1), axis=1)
        return np.where(bits[:, : sides[1]], 0, 255).astype(np.uint8)
    samples = np.frombuffer(body, ">u2" if int(highest) > 255 else np.uint8)
    return samples.astype(samples.dtype.newbyteorder("=")).reshape(*sides, -1)


def _tga(data: bytes) -> np.ndarray:
    """Uncompressed TGA as Pillow writes it."""
    length, palette, kind = data[0], data[1], data[2]
    count, depth = int.from_bytes(data[5:7], "little"), data[7] // 8
    width, height = (int.from_bytes(data[i : i + 2], "little") for i in (12, 14))
    bits, top_down = data[16], data[17] & 0x20
    start = 18 + length
    colours = np.frombuffer(data, np.uint8, count * depth * palette, start)
    start += colours.size
    if bits == 1:
        rows = np.frombuffer(data, np.uint8, height * -(-width // 8), start).reshape(height, -1)
        pixels = np.unpackbits(rows, axis=1)[:, :width] * 255
    else:
        pixels = np.frombuffer(data, np.uint8, height * width * bits // 8, start)
        pixels = pixels.reshape(height, width, bits // 8)
    if kind == 1:
        pixels = colours.reshape(count, depth)[pixels[..., 0]]
    pixels = pixels if top_down else pixels[::-1]
    if pixels.ndim == 3 and pixels.shape[2] >= 3:
        pixels = pixels[..., [2, 1, 0, *range(3, pixels.shape[2])]]
    return pixels


def _qoi(data: bytes) -> np.ndarray:
    return ic.qoi_decode(data)


READERS: dict[str, Callable[[bytes], np.ndarray]] = {
    "PNG": lambda data: ic.png_decode(data),
    "JPEG": lambda data: ic.jpeg8_decode(data),
    "WEBP": lambda data: ic.webp_decode(data),
    "AVIF": lambda data: ic.avif_decode(data),
    "JPEG2000": lambda data: ic.jpeg2k_decode(data),
    "JXL": lambda data: ic.jpegxl_decode(data),
    "GIF": lambda data: ic.gif_decode(data),
    "BMP": lambda data: ic.bmp_decode(data),
    "QOI": _qoi,
    "TIFF": _tiff,
    "PPM": _netpbm,
    "TGA": _tga,
}
CONVERTED = {("JPEG", "CMYK"), ("TIFF", "CMYK"), ("TIFF", "LAB"), ("TIFF", "YCbCr"),
             ("JPEG2000", "CMYK"), ("JPEG2000", "YCbCr")}  # fmt: skip
"""What other readers leave in its own colour space."""


def _levels(pixels: np.ndarray) -> np.ndarray:
    """(H, W, C) levels of 255, not rounded."""
    pixels = pixels if pixels.ndim == 3 else pixels[..., None]
    if pixels.dtype == bool:
        return pixels * 255.0
    return pixels / 257 if pixels.dtype == np.uint16 else pixels.astype(float)


def as_rgba(levels: np.ndarray) -> np.ndarray:
    """(H, W, 4): grey as RGB, opaque where there is no alpha."""
    channels = levels.shape[2]
    colours = levels[..., :3] if channels >= 3 else levels[..., :1].repeat(3, axis=2)
    alpha = levels[..., -1:] if channels in (2, 4) else np.full_like(levels[..., :1], 255)
    return np.concatenate([colours, alpha], axis=2)


def of_picture(picture: Picture) -> np.ndarray:
    pixels = picture.pixels if picture.pixels.ndim == 3 else picture.pixels[..., None]
    planes = [pixels] if picture.alpha is None else [pixels, picture.alpha]
    return as_rgba(np.dstack(planes).astype(float))


def written(mode: str, kind: str, height: int, width: int, seed: int, **options: object) -> bytes:
    """A file, or a rejected example where Pillow does not write the mode in that format."""
    if kind == "JXL":
        pytest.importorskip("pillow_jxl")
    try:
        return saved(image_of(mode, height, width, seed), kind, **LOSSLESS.get(kind, {}), **options)
    except (OSError, KeyError, NotImplementedError, ValueError, SystemError):
        assume(False)
        raise


def seen(kind: str, data: bytes) -> np.ndarray:
    """(H, W, 4) levels as another reader sees them."""
    return as_rgba(_levels(READERS[kind](data)))


@given(st.sampled_from(MODES), st.sampled_from(list(READERS)), st.integers(0, 99), st.data())
@settings(max_examples=EXAMPLES // 5, suppress_health_check=[HealthCheck.filter_too_much])
def test_pixels_are_those_that_other_readers_see(
    mode: str, kind: str, seed: int, data: st.DataObject
) -> None:
    height, width = data.draw(st.integers(1, 24)), data.draw(st.integers(1, 24))
    file = written(mode, kind, height, width, seed)
    picture = read_picture(file, f"a.{kind.lower()}")
    assert picture.pixels.shape[:2] == (height, width)
    assume((kind, mode) not in CONVERTED)
    expected, found = seen(kind, file), of_picture(picture)
    assert np.array_equal(found[..., 3], expected[..., 3])
    shown = expected[..., 3] > 0  # GIF has one colour for all that cannot be seen
    assert np.abs(found - expected)[shown].max(initial=0) <= 0.5


@pytest.mark.parametrize(("kind", "mode"), sorted(CONVERTED))
def test_converted_colours_are_near_the_original(kind: str, mode: str) -> None:
    colours = Image.linear_gradient("L").resize((64, 48))
    original = Image.merge("RGB", [colours, colours.rotate(90), colours.rotate(180)])
    from PIL import ImageCms

    image = original
    if mode == "LAB":
        profiles = (ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"))
        image = ImageCms.applyTransform(original, ImageCms.buildTransform(*profiles, "RGB", "LAB"))
    else:
        image = original.convert(mode)
    found = read_picture(saved(image, kind, **LOSSLESS.get(kind, {})), "a").pixels
    # Conversions round, LAB to its gamut; a channel swapped or inverted is off by 60 and more.
    assert np.abs(found.astype(int) - np.asarray(original)).mean() < 8


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("kind", ["grey", "palette"])
def test_transparent_greys_and_entries_of_every_depth(kind: str, depth: int) -> None:
    import zlib

    from tests.codec.pictures import chunk

    if kind == "palette" and depth == 16:
        pytest.skip("PNG has no palette of 16 bits")
    rng = np.random.default_rng(depth)
    height, width = 6, 8
    samples = rng.integers(0, 1 << depth, (height, width))
    bits = (samples[..., None] >> np.arange(depth)[::-1]) & 1
    rows = np.packbits(bits.reshape(height, -1).astype(np.uint8), axis=1)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    header = np.array([width, height], ">u4").tobytes()
    header += bytes((depth, 0 if kind == "grey" else 3, 0, 0, 0))
    key = int(samples[2, 3])
    if kind == "grey":
        extra = chunk(b"tRNS", key.to_bytes(2, "big"))
    else:
        colours = rng.integers(0, 256, (1 << depth, 3), dtype=np.uint8).tobytes()
        extra = chunk(b"PLTE", colours) + chunk(b"tRNS", bytes(range(min(1 << depth, 200))))
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra
    png += chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    if kind == "grey" and depth == 16:
        with pytest.raises(DataError, match="16-bit greys as transparent"):
            read_picture(png, "a.png")
        return
    picture = read_picture(png, "a.png")
    assert np.array_equal(of_picture(picture), seen("PNG", png))
    if kind == "grey":
        assert np.array_equal(picture.alpha, np.where(samples == key, 0, 255))


def _tiff_of(pixels: np.ndarray, **options: object) -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(out, pixels, **options)
    return out.getvalue()


RGB16 = np.random.default_rng(5).integers(0, 65536, (24, 32, 3), dtype=np.uint16)
GREY16 = RGB16[..., 0].copy()
TIFFS = {
    "white is 0, 16 bits": (GREY16, {"photometric": "miniswhite"}, 255 - GREY16 / 257),
    "white is 0, 16 bits, packed": (
        GREY16,
        {"photometric": "miniswhite", "compression": "lzw"},
        255 - GREY16 / 257,
    ),
    "white is 0, 8 bits": (
        (GREY16 >> 8).astype(np.uint8),
        {"photometric": "miniswhite"},
        255 - (GREY16 >> 8),
    ),
    "12 bits": (GREY16 >> 4, {"bitspersample": 12}, (GREY16 >> 4) / 4095 * 255),
    "planes of 16 bits": (
        np.moveaxis(RGB16, -1, 0),
        {"photometric": "rgb", "planarconfig": "separate"},
        RGB16 >> 8,
    ),
    "tiled planes of 16 bits, big-endian": (
        np.moveaxis(RGB16, -1, 0),
        {"photometric": "rgb", "planarconfig": "separate", "tile": (16, 16), "byteorder": ">"},
        RGB16 >> 8,
    ),
    "BigTIFF": ((RGB16 >> 8).astype(np.uint8), {"photometric": "rgb", "bigtiff": True}, RGB16 >> 8),
}


@pytest.mark.parametrize("case", TIFFS)
def test_tiff_of_every_layout(case: str) -> None:
    pixels, options, expected = TIFFS[case]
    found = read_picture(_tiff_of(pixels, **options), "a.tif")
    assert np.abs(found.pixels - expected).max() <= 1
    if pixels.dtype == np.uint16:
        assert any("bits a channel are reduced to 8" in notice for notice in found.notices)


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        ((GREY16 / 65535).astype(np.float32), "32-bit floating-point samples"),
        ((RGB16 / 65535).astype(np.float32), "32-bit floating-point samples"),
        ((GREY16 / 65535).astype(np.float16), "16-bit floating-point samples"),
        ((GREY16 >> 8).astype(np.int8), "8-bit signed integer samples"),
    ],
)
def test_tiff_samples_without_8_bits_are_named(pixels: np.ndarray, words: str) -> None:
    with pytest.raises(DataError, match=words) as refused:
        read_picture(_tiff_of(pixels), "a.tif")
    assert "JPEG" not in str(refused.value)


def test_deep_files_of_every_format_are_noted() -> None:
    pytest.importorskip("pillow_jxl")
    files = {
        "a.png": ic.png_encode(RGB16),
        "b.png": ic.png_encode(GREY16),
        "c.tif": _tiff_of(RGB16, photometric="rgb"),
        "d.ppm": b"P6 32 24 65535\n" + RGB16.astype(">u2").tobytes(),
        "e.pgm": b"P5 32 24 65535\n" + GREY16.astype(">u2").tobytes(),
        "f.jp2": ic.jpeg2k_encode(GREY16, level=0),
        "g.jxl": ic.jpegxl_encode(RGB16, lossless=True),
    }
    for name, file in files.items():
        picture = read_picture(file, name)
        expected = GREY16 if picture.pixels.ndim == 2 else RGB16
        assert np.abs(picture.pixels - expected / 257).max() <= 1, name
        assert picture.notices == ("16 bits a channel are reduced to 8",), name
    ten = ic.avif_encode(RGB16 >> 6, level=100, bitspersample=10)
    assert "10 bits a channel are reduced to 8" in read_picture(ten, "h.avif").notices


def test_netpbm_of_any_maximum_and_pam() -> None:
    grey = np.arange(1024, dtype=">u2").reshape(32, 32)
    file = b"P5\n# a comment\n32 32\n1023\n" + grey.tobytes()
    picture = read_picture(file, "a.pgm")
    assert np.abs(picture.pixels - grey / 1023 * 255).max() <= 0.5
    rgba = np.random.default_rng(0).integers(0, 256, (3, 5, 4), dtype=np.uint8)
    head = b"P7\nWIDTH 5\nHEIGHT 3\nDEPTH 4\nMAXVAL 255\nTUPLTYPE RGB_ALPHA\nENDHDR\n"
    picture = read_picture(head + rgba.tobytes(), "a.pam")
    assert np.array_equal(np.dstack([picture.pixels, picture.alpha]), rgba)
    for bad in (
        head,
        head[:40],
        b"P6 5 3 70000\n",
        b"P6 0 3 255\n",
        b"P5 5",
        b"P7\nWIDTH x\nENDHDR\n",
    ):
        with pytest.raises(DataError, match="damaged image"):
            read_picture(bad, "a.pam")


def test_what_cannot_be_read_is_named() -> None:
    cases = {
        "12-bit JPEG": ic.jpeg8_encode(RGB16 >> 4, bitspersample=12),
        "JPEG-LS": ic.jpegls_encode((GREY16 >> 8).astype(np.uint8)),
        "JPEG 2000 of 16 bits a channel in colour": ic.jpeg2k_encode(RGB16, level=0),
        "is not an image this program reads": b"8BPS" + bytes(100),
    }
    for words, file in cases.items():
        with pytest.raises(DataError, match=words) as refused:
            read_picture(file, "a.jpg")
        assert str(refused.value).count("\n") == 0
