"""The Pillow plugin, and programs that read and write through it."""

import doctest
import io
import pickle
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

import hpcm_scale
import hpcm_scale.pillow as plugin
from hpcm_scale import read_image, write_image
from hpcm_scale.codec import container, image_io
from hpcm_scale.codec.codec import Codec
from hpcm_scale.errors import BitstreamError, CheckpointError, ConfigError
from hpcm_scale.weights.stored_model import bundled_model
from tests.codec.conftest import photo, save_tiny
from tests.codec.pictures import XMP, exif_block, profile


@pytest.fixture(autouse=True)
def no_own_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HPCM_MODELS", raising=False)


def test_the_examples_of_the_plugin_hold() -> None:
    assert doctest.testmod(plugin).failed == 0


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA"])
def test_save_and_open(mode: str, tmp_path: Path) -> None:
    image = Image.fromarray(photo(90, 130)).convert(mode.rstrip("A"))
    if mode.endswith("A"):
        image.putalpha(Image.fromarray(photo(90, 130, 1)[..., 0]))
    image.save(tmp_path / "a.hpcm", quality=60)
    opened = Image.open(tmp_path / "a.hpcm")
    assert (opened.format, opened.mode, opened.size) == ("HPCM", mode, (130, 90))
    assert opened.get_format_mimetype() == image_io.MIME
    codec = Codec.load(bundled_model("compact"))
    expected = codec.decode((tmp_path / "a.hpcm").read_bytes())
    assert np.array_equal(opened, expected)
    with Image.open(tmp_path / "a.hpcm") as again:
        again.thumbnail((32, 32))
    assert again.size == (32, 22)


def test_pixels_are_decoded_when_they_are_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(photo(50, 60)).save(tmp_path / "a.hpcm")
    decoded = []
    decode = Codec.decode
    monkeypatch.setattr(Codec, "decode", lambda self, d: (decoded.append(1), decode(self, d))[1])
    image = Image.open(tmp_path / "a.hpcm")
    assert (image.size, image.mode, decoded) == ((60, 50), "RGB", [])
    image.load()
    image.getpixel((0, 0))
    assert image.crop((0, 0, 9, 9)).size == (9, 9)
    assert decoded == [1]
    copied = pickle.loads(pickle.dumps(Image.open(tmp_path / "a.hpcm")))
    assert np.array_equal(np.asarray(copied), np.asarray(image))


def test_tags_are_there_before_the_pixels(tmp_path: Path) -> None:
    image = Image.fromarray(photo(40, 40))
    rgb = profile(b"RGB ")
    options = {"exif": exif_block(1), "icc_profile": rgb, "dpi": (300, 72), "xmp": XMP}
    image.save(tmp_path / "a.hpcm", **options)
    opened = Image.open(tmp_path / "a.hpcm")
    assert opened.info["icc_profile"] == rgb
    assert opened.info["dpi"] == (300, 72)
    assert opened.getexif()
    assert "exif" not in image.info  # what was saved beside it stays out of it
    with_profile = opened.copy()
    with_profile.save(tmp_path / "bare.hpcm", icc_profile=None)
    assert "icc_profile" not in Image.open(tmp_path / "bare.hpcm").info
    before = dict(opened.info)
    opened.load()
    assert opened.info == before
    grey = Image.fromarray(photo(40, 40)[..., 0])
    grey.save(tmp_path / "grey.hpcm", icc_profile=rgb)
    opened = Image.open(tmp_path / "grey.hpcm")
    mode = opened.mode
    opened.load()
    assert mode == opened.mode


def test_quality_chooses_a_model_or_a_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.fromarray(photo(128, 200))
    sizes = [write_image(image, tmp_path / "a.hpcm", quality=q) for q in (1, 50, 100)]
    assert sizes == sorted(set(sizes))
    save_tiny(tmp_path / "models" / "many.safetensors", lmbda=None, rates=(0.002, 0.02, 0.2))
    monkeypatch.setenv("HPCM_MODELS", str(tmp_path / "models"))
    image.save(tmp_path / "b.hpcm", quality=80)
    assert Image.open(tmp_path / "b.hpcm").info["quality"] == pytest.approx(80, abs=0.01)
    low, high = (write_image(image, io.BytesIO(), quality) for quality in (1, 100))
    assert low < write_image(image, io.BytesIO(), size=(low + high) // 2) <= (low + high) // 2


def test_file_objects_bytes_and_arrays(tmp_path: Path) -> None:
    pixels = photo(70, 50)
    held = io.BytesIO()
    count = write_image(pixels, held, engine="numpy")
    assert count == len(held.getvalue())
    pictures = [np.asarray(read_image(held.getvalue(), engine="numpy"))]
    held.seek(0)
    pictures.append(np.asarray(read_image(held, engine="numpy")))
    path = tmp_path / "a.hpcm"
    path.write_bytes(held.getvalue())
    pictures.append(np.asarray(read_image(path, engine="numpy")))
    with path.open("rb") as file:
        pictures.append(np.asarray(read_image(file, engine="numpy")))
    assert all(np.array_equal(p, pictures[0]) for p in pictures)
    assert Image.open(io.BytesIO(held.getvalue())).size == (50, 70)


def test_progressive_files_and_pixels_by_choice(tmp_path: Path) -> None:
    image = Image.fromarray(photo(128, 200))
    codec = Codec.load(bundled_model("compact"))
    digests = []
    for exact in (False, True):
        image.save(tmp_path / "a.hpcm", progressive=True, exact_pixels=exact)
        data = (tmp_path / "a.hpcm").read_bytes()
        assert codec.preview(data[:-100]).size == image.size
        digests.append(container.read(data).header.pixel_digest)
    assert digests[0] is None
    assert digests[1] is not None
    plain = write_image(image, io.BytesIO())
    assert plain < write_image(image, io.BytesIO(), progressive=True) < plain + 40


def test_memory_files_of_fsspec() -> None:
    fsspec = pytest.importorskip("fsspec")
    with fsspec.open("memory://pictures/a.hpcm", "wb") as file:
        Image.fromarray(photo(40, 60)).save(file, "HPCM")
    with fsspec.open("memory://pictures/a.hpcm", "rb") as file:
        assert Image.open(file).convert("RGB").size == (60, 40)
    with fsspec.open("memory://pictures/a.hpcm", "rb") as file:
        assert read_image(file).size == (60, 40)


def test_what_is_wrong_is_said_as_pillow_says_it(tmp_path: Path) -> None:
    image = Image.fromarray(photo(40, 40))
    image.save(tmp_path / "a.hpcm")
    data = (tmp_path / "a.hpcm").read_bytes()
    with pytest.raises(OSError, match="checksum"):
        Image.open(io.BytesIO(data[:-9] + b"x" + data[-8:]))
    with pytest.raises(BitstreamError, match="truncated"):
        read_image(data[:-9])
    with pytest.raises(UnidentifiedImageError):
        Image.open(io.BytesIO(b"HPD" + data[3:]))
    for error, options in (
        (ValueError, {"quality": 200}),
        (ValueError, {"quality": 5, "size": 100}),
        (ValueError, {"quality": "high"}),
        (ValueError, {"engine": "jax"}),
        (OSError, {"model": "no such model"}),
    ):
        with pytest.raises(error):
            image.save(tmp_path / "b.hpcm", **options)
        assert not (tmp_path / "b.hpcm").exists()
    with pytest.raises(ConfigError):
        write_image(image, tmp_path / "b.hpcm", psnr=30, model="w0.125-0.013")
    with pytest.raises(CheckpointError):
        write_image(image, tmp_path / "b.hpcm", model="none")
    with pytest.raises(OSError, match="0×5 holds no pixel"):
        Image.new("RGB", (0, 5)).save(tmp_path / "c.hpcm")
    with pytest.warns(UserWarning, match="optimize"):
        image.save(tmp_path / "b.hpcm", optimize=True)


def test_of_an_unknown_model_the_header_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_tiny(tmp_path / "tiny.safetensors")
    Image.fromarray(photo(40, 40)).save(tmp_path / "a.hpcm", model=tmp_path / "tiny.safetensors")
    image = Image.open(tmp_path / "a.hpcm")
    assert image.size == (40, 40)
    with pytest.raises(OSError, match="which is not here"):
        image.load()
    monkeypatch.setenv("HPCM_MODELS", str(tmp_path))
    assert Image.open(tmp_path / "a.hpcm").getpixel((0, 0))


def test_imageio_reads_and_writes_it(tmp_path: Path) -> None:
    iio = pytest.importorskip("imageio.v3")
    pixels = photo(64, 96)
    iio.imwrite(tmp_path / "a.hpcm", pixels, plugin="pillow")
    found = iio.imread(tmp_path / "a.hpcm", plugin="pillow")
    assert np.array_equal(found, np.asarray(read_image(tmp_path / "a.hpcm")))
    assert iio.improps(tmp_path / "a.hpcm", plugin="pillow").shape == (64, 96, 3)


def test_scikit_image_reads_it(tmp_path: Path) -> None:
    skimage = pytest.importorskip("skimage.io")
    write_image(photo(64, 96), tmp_path / "a.hpcm")
    found = skimage.imread(str(tmp_path / "a.hpcm"))
    assert np.array_equal(found, np.asarray(read_image(tmp_path / "a.hpcm")))


@pytest.mark.skipif(shutil.which("file") is None, reason="the program file is not installed")
def test_file_knows_it(tmp_path: Path) -> None:
    write_image(photo(20, 20), tmp_path / "a.hpcm")
    magic = Path(hpcm_scale.__file__).parent / "codec" / "hpcm.magic"
    command = ["file", "-m", str(magic), "--brief"]
    said = subprocess.run([*command, str(tmp_path / "a.hpcm")], capture_output=True, text=True)
    assert said.stdout.startswith("HPCM compressed image, version 1")
    mime = subprocess.run(
        [*command, "--mime-type", str(tmp_path / "a.hpcm")], capture_output=True, text=True
    )
    assert mime.stdout.strip() == image_io.MIME
