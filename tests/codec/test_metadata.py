"""What stands beside the pixels: odd, damaged and large blocks, by each format."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, TiffImagePlugin

from hpcm_scale.codec import image_kinds
from hpcm_scale.codec.image_writer import losses, picture_bytes
from hpcm_scale.codec.images import Picture, read_picture
from hpcm_scale.codec.metadata import Metadata, tiff_block
from hpcm_scale.codec.sections import pack_metadata, unpack_metadata
from hpcm_scale.errors import BitstreamError, DataError
from tests.codec.pictures import (
    CAMERA,
    SRGB,
    XMP,
    chunk,
    chunks_of,
    exif_block,
    odd_tags,
    profile,
    saved,
    with_chunks,
)

RGB = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)
PNG = saved(Image.fromarray(RGB), "PNG")


def _with_exif(kind: str, block: bytes) -> bytes:
    """A file with an EXIF block put in byte for byte: Pillow would look into it."""
    image = Image.fromarray(RGB)
    if kind == "PNG":
        return with_chunks(PNG, chunk(b"eXIf", block))
    if kind == "JPEG":
        body = b"Exif\0\0" + block
        segment = b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body
        jpeg = saved(image, "JPEG", quality=95)
        return jpeg[:2] + segment + jpeg[2:]
    return saved(image, "WEBP", lossless=True, exif=block)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("oddity", odd_tags())
def test_odd_tags_keep_no_picture_from_standing_upright(kind: str, order: str, oddity: str) -> None:
    odd = odd_tags(order)[oddity]
    block = exif_block(6, order, (odd,))
    picture = read_picture(_with_exif(kind, block), f"a.{kind.lower()}")
    assert picture.pixels.shape == (30, 20, 3)
    assert not picture.notices
    # Not one byte of the block is another, but the orientation's.
    assert picture.metadata.exif == exif_block(1, order, (odd,))
    written = picture_bytes(picture, "b.png")
    assert chunks_of(written)[b"eXIf"] == exif_block(1, order, (odd,))


@pytest.mark.parametrize("kind", [1, 3, 4])
@pytest.mark.parametrize("order", ["<", ">"])
def test_an_orientation_of_any_integer_kind_is_applied(kind: int, order: str) -> None:
    picture = read_picture(_with_exif("PNG", exif_block(3, order, kind=kind)), "a.png")
    assert np.array_equal(picture.pixels, RGB[::-1, ::-1])
    assert picture.metadata.exif == exif_block(1, order, kind=kind)


@pytest.mark.parametrize("value", [0, 9, 60000])
def test_an_orientation_that_is_none_is_passed_over(value: int) -> None:
    block = exif_block(value)
    picture = read_picture(_with_exif("JPEG", block), "a.jpg")
    assert picture.pixels.shape == RGB.shape
    assert picture.metadata.exif == block


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize(
    "junk", [b"II", b"junk" * 9, b"II*\0", b"MM\0\x2b\0\0\0\0", exif_block(6)[1:]]
)
def test_a_junk_exif_block_is_left_out_with_a_note(kind: str, junk: bytes) -> None:
    picture = read_picture(_with_exif(kind, junk), f"a.{kind.lower()}")
    assert picture.pixels.shape == RGB.shape
    assert picture.metadata.exif is None
    assert picture.notices == ("its EXIF block is damaged and left out",)


def test_avif_with_a_junk_exif_block_is_read() -> None:
    good = saved(Image.fromarray(RGB), "AVIF", quality=90, exif=b"Exif\0\0" + exif_block(None))
    at = good.index(b"II*\0")
    bad = good[:at] + b"junk" + good[at + 4 :]
    picture = read_picture(bad, "a.avif")
    assert np.array_equal(picture.pixels, read_picture(good, "a.avif").pixels)
    assert "its EXIF block is damaged and left out" in picture.notices


def test_text_and_profiles_above_a_mebibyte_are_read() -> None:
    text = b"word " * 300_000
    icc = profile(b"RGB ", 200) + np.random.default_rng(0).bytes(2_000_000)
    file = with_chunks(
        PNG,
        chunk(b"zTXt", b"workflow\0\0" + zlib.compress(text)),
        chunk(b"tEXt", b"notes\0" + text),
        chunk(b"iCCP", b"icc\0\0" + zlib.compress(icc)),
    )
    picture = read_picture(file, "a.png")
    assert np.array_equal(picture.pixels, RGB)
    assert picture.icc == icc
    assert picture.notices == ("not kept: zTXt workflow, tEXt notes",)
    bomb = with_chunks(PNG, chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(200_000_000), 9)))
    assert read_picture(bomb, "a.png").icc is None


def test_a_bad_crc_counts_where_pixels_depend_on_it() -> None:
    for kind in (b"tEXt", b"gAMA", b"tIME", b"eXIf", b"tRNS"):
        picture = read_picture(with_chunks(PNG, chunk(kind, b"abcdef", crc=1)), "a.png")
        assert np.array_equal(picture.pixels, RGB)
        assert f"not kept: {kind.decode()} (damaged)" in picture.notices
        assert picture.metadata == Metadata()
    for kind in (b"IHDR", b"IDAT", b"IEND"):
        at = PNG.index(kind) + 4
        size = int.from_bytes(PNG[at - 8 : at - 4], "big")
        bad = PNG[: at + size] + b"\0\0\0\0" + PNG[at + size + 4 :]
        with pytest.raises(DataError, match=f"damaged image .its {kind.decode()} chunk"):
            read_picture(bad, "a.png")


def test_what_is_not_kept_is_named() -> None:
    ic = pytest.importorskip("imagecodecs")
    pytest.importorskip("pillow_jxl")
    cases = {
        "tEXt Comment": with_chunks(PNG, chunk(b"tEXt", b"Comment\0hello")),
        "tIME, bKGD": with_chunks(PNG, chunk(b"tIME", bytes(7)), chunk(b"bKGD", bytes(6))),
        "comment": saved(Image.fromarray(RGB), "JPEG", comment=b"hello"),
        "only the first of its frames": ic.jpegxl_encode(np.stack([RGB, RGB[::-1]])),
        "only the first of 3 frames": saved(
            Image.fromarray(RGB),
            "PNG",
            save_all=True,
            append_images=[Image.fromarray(RGB[::-1]), Image.fromarray(RGB // 2)],
        ),
    }
    jpeg = saved(Image.fromarray(RGB), "JPEG")
    iptc = b"Photoshop 3.0\x008BIM"
    cases["IPTC and Photoshop tags"] = (
        jpeg[:2] + b"\xff\xed" + struct.pack(">H", len(iptc) + 2) + iptc + jpeg[2:]
    )
    for words, file in cases.items():
        picture = read_picture(file, "a")
        assert words in " ".join(picture.notices), words
        assert picture.pixels.shape == RGB.shape


def test_the_first_of_a_phones_pictures_is_kept_with_a_note() -> None:
    file = saved(
        Image.fromarray(RGB), "MPO", save_all=True, append_images=[Image.fromarray(RGB[:5])]
    )
    picture = read_picture(file, "a.jpg")
    assert picture.pixels.shape == RGB.shape
    assert picture.notices == ("only the first of 2 frames is kept",)


def test_tiff_tags_go_through_png_and_back() -> None:
    """Descriptions, a GPS directory and unknown tags, through both byte orders."""
    tifffile = pytest.importorskip("tifffile")
    for order in "<>":
        out = io.BytesIO()
        tifffile.imwrite(
            out,
            RGB,
            photometric="rgb",
            byteorder=order,
            description="A test",
            metadata=None,
            software="Program 9",
            resolution=(300, 150),
            resolutionunit="inch",
            iccprofile=SRGB,
            extratags=[(33550, 12, 3, (0.5, 0.25, 1.0), True), (700, 1, len(XMP), XMP, True)],
        )
        picture = read_picture(out.getvalue(), "a.tif")
        assert np.array_equal(picture.pixels, RGB)
        assert (picture.icc, picture.metadata.xmp) == (SRGB, XMP)
        assert picture.metadata.dpi == pytest.approx((300, 150))
        png = picture_bytes(picture, "a.png")
        back = picture_bytes(read_picture(png, "a.png"), "b.tif")
        with tifffile.TiffFile(io.BytesIO(back)) as file:
            page = file.pages[0]
            assert np.array_equal(page.asarray(), RGB)
            assert page.tags.valueof(270) == "A test"
            assert page.tags.valueof(305) == "Program 9"
            assert page.tags.valueof(33550) == (0.5, 0.25, 1.0)
            assert page.tags.valueof(34675) == SRGB
            across, below = page.tags.valueof(282)
            assert across / below == pytest.approx(300, rel=1e-3)


def test_exif_directories_go_into_tiff() -> None:
    exif = Image.Exif()
    exif[CAMERA] = "Test camera"
    exif.get_ifd(0x8769)[0x829A] = TiffImagePlugin.IFDRational(1, 250)
    exif.get_ifd(0x8825)[1] = "N"
    for mark in ("<", ">"):
        exif.endian = mark
        block = exif.tobytes().removeprefix(b"Exif\0\0")
        picture = Picture(RGB, metadata=Metadata(exif=block))
        with Image.open(io.BytesIO(picture_bytes(picture, "a.tif"))) as image:
            found = image.getexif()
            assert np.array_equal(image, RGB)
            assert found[CAMERA] == "Test camera"
            assert found.get_ifd(0x8769)[0x829A] == pytest.approx(1 / 250)
            assert found.get_ifd(0x8825)[1] == "N"


def test_an_orientation_in_a_tiffs_xmp_turns_nothing() -> None:
    """Pillow alone turns by it; other readers show the picture as it lies."""
    tifffile = pytest.importorskip("tifffile")
    out = io.BytesIO()
    tags = [(700, 1, len(XMP), XMP, True)]
    tifffile.imwrite(out, RGB, photometric="rgb", extratags=tags)
    assert np.array_equal(read_picture(out.getvalue(), "a.tif").pixels, RGB)


def test_a_cameras_raw_file_is_refused() -> None:
    tifffile = pytest.importorskip("tifffile")
    out = io.BytesIO()
    tifffile.imwrite(out, RGB, photometric="rgb", extratags=[(50706, 1, 4, b"\1\4\0\0", True)])
    with pytest.raises(DataError, match="camera's raw file"):
        read_picture(out.getvalue(), "a.dng")


def test_tags_too_large_for_jpeg_are_left_out_with_a_note() -> None:
    large = exif_block(1, tags=((0x927C, 7, 70_000, bytes(70_000)),))
    picture = Picture(RGB, metadata=Metadata(exif=large, xmp=XMP, gamma=45455, dpi=(1e5, 1e5)))
    with Image.open(io.BytesIO(picture_bytes(picture, "a.jpg"))) as image:
        assert "exif" not in image.info
        assert image.info["xmp"] == XMP
    assert losses(picture, "a.jpg") == ["JPEG has no place for its gAMA, EXIF, dpi"]
    assert losses(picture, "a.png") == []


def test_a_name_alone_makes_no_tga() -> None:
    rng = np.random.default_rng(0)
    file = saved(Image.fromarray(RGB), "TGA")
    assert np.array_equal(read_picture(file, "a.TGA").pixels, RGB)
    for _ in range(200):
        with pytest.raises(DataError, match=r"^a\.tga: is (a damaged image|not an image)"):
            read_picture(rng.bytes(40), "a.tga")
    with pytest.raises(DataError, match="is not an image"):
        read_picture(rng.bytes(40), "a.png")


def test_a_jxl_of_absurd_size_is_refused_undecoded() -> None:
    """Its plugin would decode it to open it."""
    ic = pytest.importorskip("imagecodecs")
    pytest.importorskip("pillow_jxl")
    for height, width in ((24, 32), (40, 100), (1, 7), (300, 300), (90, 160)):
        pixels = np.zeros((height, width, 3), np.uint8)
        assert read_picture(ic.jpegxl_encode(pixels, lossless=True), "a").pixels.shape == (
            height, width, 3,
        )  # fmt: skip
    # "Not small", then heights and a width of 1 + 30 bits, as the size header has them.
    bits = [0, 1, 1, *([1] * 29 + [0]), 0, 0, 0, 1, 1, *([1] * 29 + [0])]
    bits += [0] * (-len(bits) % 8)
    huge = b"\xff\x0a" + np.packbits(bits, bitorder="little").tobytes() + bytes(40)
    with pytest.raises(DataError, match="is above 536870912 pixels"):
        read_picture(huge, "a.jxl")


def test_heic_is_read_where_its_plugin_is(monkeypatch: pytest.MonkeyPatch) -> None:
    pillow_heif = pytest.importorskip("pillow_heif", reason="pillow-heif reads HEIC")
    pillow_heif.register_heif_opener()
    file = saved(
        Image.fromarray(RGB.repeat(4, 0).repeat(4, 1)), "HEIF", quality=95, exif=exif_block(6)
    )
    picture = read_picture(file, "a.heic")
    assert picture.pixels.shape == (120, 80, 3)
    assert tiff_block.orientation_of(picture.metadata.exif) == 1
    turned = np.rot90(RGB.repeat(4, 0).repeat(4, 1), -1)
    assert np.abs(picture.pixels.astype(int) - turned).mean() < 20
    monkeypatch.setitem(image_kinds._PLUGINS, "HEIF", ("no_such_module", "pillow-heif"))
    with pytest.raises(DataError, match=r"is a HEIF image, .* pip install pillow-heif"):
        read_picture(file, "a.heic")


COLOURS = st.integers(0, 2**31 - 1)


@given(
    st.builds(
        Metadata,
        exif=st.none() | st.builds(exif_block, st.sampled_from([None, 1]), st.sampled_from("<>")),
        xmp=st.none() | st.just(XMP),
        dpi=st.none() | st.tuples(*2 * [st.floats(0.01, 1e6)]),
        gamma=st.none() | st.integers(1, 2**31 - 1),
        chromaticities=st.none() | st.tuples(*8 * [COLOURS]),
        srgb=st.none() | st.integers(0, 3),
        cicp=st.none() | st.binary(min_size=4, max_size=4),
    )
)
def test_metadata_comes_back_from_its_boxes(metadata: Metadata) -> None:
    section = pack_metadata(metadata)
    assert (section is None) == (metadata == Metadata())
    if section is not None:
        assert unpack_metadata(section) == metadata


@given(st.binary(max_size=60))
def test_no_bytes_make_anything_but_metadata_or_an_error(body: bytes) -> None:
    for name in (b"exif", b"xmp ", b"dpi ", b"gAMA", b"cHRM", b"sRGB", b"cICP", b"next"):
        section = zlib.compress(name + struct.pack("<I", len(body)) + body)
        try:
            found = unpack_metadata(section)
        except BitstreamError:
            continue
        again = pack_metadata(found)
        assert again is None or unpack_metadata(again) == found
    with pytest.raises(BitstreamError, match="damaged metadata"):
        unpack_metadata(zlib.compress(b"exif" + struct.pack("<I", 99) + body[:98]))


def test_metadata_sections_are_bounded() -> None:
    with pytest.raises(BitstreamError, match="above 25165824 bytes"):
        unpack_metadata(zlib.compress(bytes(30_000_000), 9))
    twice = b"sRGB" + struct.pack("<I", 1) + b"\1"
    with pytest.raises(BitstreamError, match="there twice"):
        unpack_metadata(zlib.compress(twice * 2))
    turned = exif_block(6)
    with pytest.raises(BitstreamError, match="turns pixels that are upright"):
        unpack_metadata(zlib.compress(b"exif" + struct.pack("<I", len(turned)) + turned))


@given(st.binary(max_size=300))
def test_no_block_is_followed_out_of_its_bytes(body: bytes) -> None:
    """Directories of any content: read or passed over, never an error, and small once copied."""
    for mark in (b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08", b"II+\0\x08\0\0\0\x10" + bytes(7)):
        block = tiff_block.parse(mark + body)
        assert block is not None
        tiff_block.orientation_of(mark + body)
        directory = tiff_block.copied(block)
        assert len(tiff_block.written(directory, block.order, 8)) < 40 * len(mark + body) + 100
        assert tiff_block.upright(mark + body)[: len(mark)] == mark


def test_directories_that_point_at_themselves_end() -> None:
    pointer = struct.pack("<HHII", tiff_block.EXIF_IFD, 4, 1, 8)
    block = tiff_block.parse(b"II*\0\x08\0\0\0" + struct.pack("<H", 1) + pointer + bytes(4))
    assert tiff_block.copied(block) == {}
    # Many tags that claim the same large bytes are not all copied.
    tags = b"".join(struct.pack("<HHII", 50000 + i, 7, 900_000, 70_000) for i in range(5000))
    data = b"II*\0\x08\0\0\0" + struct.pack("<H", 5000) + tags + bytes(4)
    data = data.ljust(1_000_000, b"x")
    copied = tiff_block.copied(tiff_block.parse(data))
    assert sum(len(tag.value) for tag in copied.values()) <= len(data)


def test_files_on_disk_are_read_by_what_they_hold(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(PNG)
    assert np.array_equal(read_picture(path).pixels, RGB)
