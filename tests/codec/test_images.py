import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hpcm_scale.codec import sections
from hpcm_scale.codec.image_writer import picture_bytes
from hpcm_scale.codec.images import Picture, picture_of, read_picture
from hpcm_scale.codec.sections import pack_alpha, pack_icc, unpack_alpha, unpack_icc
from hpcm_scale.errors import BitstreamError, DataError

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
ALPHA = RNG.integers(0, 256, (20, 30), dtype=np.uint8)


def _file(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def _png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG written chunk by chunk: kinds that Pillow does not write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif", "a.bmp", "a.ppm"])
def test_lossless_formats_keep_every_pixel(name: str) -> None:
    picture = Picture(RGB)
    assert np.array_equal(read_picture(picture_bytes(picture, name)).pixels, RGB)


@pytest.mark.parametrize("name", ["a.png", "a.webp"])
def test_alpha_and_profile_pass_through_files(name: str) -> None:
    visible = np.maximum(ALPHA, 1)  # WebP does not keep the colour of what cannot be seen
    found = read_picture(picture_bytes(Picture(RGB, visible, b"profile"), name))
    assert found == Picture(found.pixels, found.alpha, b"profile")
    assert np.array_equal(found.pixels, RGB)
    assert np.array_equal(found.alpha, visible)


def test_an_opaque_alpha_plane_is_dropped() -> None:
    opaque = Image.fromarray(np.dstack([RGB, np.full((20, 30), 255, np.uint8)]))
    assert picture_of(opaque).alpha is None


def test_jpeg_refuses_alpha_with_a_remedy() -> None:
    with pytest.raises(DataError, match=r"a\.jpg: JPEG has no alpha.*write \.png"):
        picture_bytes(Picture(RGB, ALPHA), "a.jpg")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = read_picture(_file(Image.fromarray(RGB), "PNG", exif=exif))
    upright = {
        1: RGB,
        2: RGB[:, ::-1],
        3: RGB[::-1, ::-1],
        4: RGB[::-1],
        5: RGB.transpose(1, 0, 2),
        6: np.rot90(RGB, -1),
        7: RGB[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(RGB),
    }
    assert np.array_equal(picture.pixels, upright[orientation])


def test_sixteen_bits_are_reduced_with_a_notice() -> None:
    grey = RNG.integers(0, 65536, (20, 30), dtype=np.uint16)
    grey[0, :3] = (0, 65535, 257)
    picture = read_picture(_file(Image.fromarray(grey), "PNG"))
    assert picture.notices == ("16 bits a channel are reduced to 8",)
    assert np.abs(picture.pixels - grey / 257).max() <= 0.5
    assert picture.pixels[0, :3].tolist() == [0, 255, 1]

    rows = b"".join(b"\0" + bytes(RNG.integers(0, 256, 30 * 6, dtype=np.uint8)) for _ in range(20))
    picture = read_picture(_png(30, 20, 16, 2, rows))
    assert picture.notices == ("16 bits a channel are reduced to 8",)
    assert picture.pixels.shape == (20, 30, 3)


@pytest.mark.parametrize(
    ("mode", "shape", "has_alpha"),
    [
        ("1", (20, 30), False),
        ("L", (20, 30), False),
        ("LA", (20, 30), True),
        ("P", (20, 30, 3), False),
        ("RGBA", (20, 30, 3), True),
        ("CMYK", (20, 30, 3), False),
    ],
)
def test_every_mode_has_a_meaning(mode: str, shape: tuple[int, ...], has_alpha: bool) -> None:
    image = Image.fromarray(np.dstack([RGB, ALPHA])).convert(
        "RGB" if mode in ("P", "CMYK") else "RGBA"
    )
    picture = picture_of(image.convert(mode))
    assert picture.pixels.shape == shape
    assert (picture.alpha is not None) == has_alpha


def test_a_palette_with_a_transparent_colour_has_alpha() -> None:
    image = Image.fromarray(RGB).convert("P")
    picture = read_picture(_file(image, "PNG", transparency=image.getpixel((3, 4))))
    assert picture.alpha[4, 3] == 0
    assert picture.alpha.max() == 255


@pytest.mark.parametrize(
    "array", [RGB.astype(np.float32), RGB[..., :2], RGB[0, 0], RGB[:0], RGB[None]]
)
def test_an_array_without_8_bit_meaning_is_refused(array: np.ndarray) -> None:
    with pytest.raises(DataError, match="shape"):
        picture_of(array)


def test_damaged_missing_and_foreign_files_are_refused_by_name(tmp_path: Path) -> None:
    good = _file(Image.fromarray(RGB), "PNG")
    cases = {
        "empty.png": b"",
        "text.png": b"not an image",
        "cut.png": good[: len(good) // 2],
        "flipped.png": good[:60] + bytes([good[60] ^ 0xFF]) + good[61:],
    }
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=name):
            read_picture(tmp_path / name)
    with pytest.raises(DataError, match=r"missing\.png: cannot be read"):
        read_picture(tmp_path / "missing.png")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "kind", ["TIFF", "JPEG", "WEBP", "BMP", "GIF", "AVIF", "JPEG2000", "QOI", "PPM", "TGA"]
)
def test_no_mutation_of_a_picture_gets_past_as_another_error(kind: str) -> None:
    good = _file(Image.fromarray(RGB[:16, :16]), kind)
    generator = np.random.default_rng(0)
    outcomes = set()
    for _ in range(400):
        data = bytearray(good)
        for place in generator.integers(0, len(data), 3):
            data[place] = generator.integers(256)
        try:
            read_picture(bytes(data), f"a.{kind.lower()}")
            outcomes.add("read")
        except DataError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


def test_a_transparent_grey_of_16_bits_is_refused() -> None:
    sixteen = Image.fromarray(np.full((4, 4), 300, np.uint16))
    with pytest.raises(DataError, match="16-bit greys as transparent"):
        read_picture(_file(sixteen, "PNG", transparency=300))


def test_a_huge_image_is_refused_before_its_pixels_are_read() -> None:
    claim = _png(60000, 60000, 8, 2, b"")
    with pytest.raises(DataError, match="60000×60000 is above"):
        read_picture(claim)
    assert Image.MAX_IMAGE_PIXELS is not None  # the process's own limit is back


def test_alpha_and_profile_sections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert np.array_equal(unpack_alpha(pack_alpha(ALPHA), 30, 20), ALPHA)
    assert unpack_icc(pack_icc(b"profile" * 1000)) == b"profile" * 1000
    with pytest.raises(BitstreamError, match="alpha plane of 30×20"):
        unpack_alpha(pack_alpha(ALPHA), 31, 20)
    with pytest.raises(BitstreamError, match="damaged alpha"):
        unpack_alpha(pack_alpha(ALPHA)[:-30], 30, 20)
    with pytest.raises(BitstreamError, match="damaged ICC"):
        unpack_icc(b"nonsense")
    monkeypatch.setattr(sections, "LARGEST_ICC", 100)
    with pytest.raises(BitstreamError, match="above 100 bytes"):
        unpack_icc(pack_icc(bytes(101)))
