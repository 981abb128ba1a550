"""The inputs of $HPCM_SHARED/fails, made after public bug reports, and what each should give."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hpcm_scale.codec.images import read_picture
from hpcm_scale.errors import DataError
from tests.codec.conftest import Run, refused

FAILS = Path(os.environ.get("HPCM_SHARED", "/nowhere")) / "fails"
pytestmark = pytest.mark.skipif(
    not FAILS.is_dir(), reason="HPCM_SHARED names no folder with fails/ (development data)"
)
PICTURES = FAILS / "pictures"


def test_pictures_that_are_read() -> None:
    pixels = read_picture(PICTURES / "clobber_photo.png").pixels
    for name in ("png_big_ztxt.png", "png_exif_bad_short.png", "png_gama_chrm.png", "ppm_16.ppm"):
        assert np.abs(read_picture(PICTURES / name).pixels.astype(int) - pixels).max() <= 1, name
    turned = read_picture(PICTURES / "jpg_exif6_float_nan.jpg").pixels
    assert np.abs(turned.astype(int) - np.rot90(pixels, -1)).mean() < 12  # JPEG
    assert read_picture(PICTURES / "tif_miniswhite16.tif").pixels.mean() == pytest.approx(
        156, abs=1
    )
    transparent = read_picture(PICTURES / "png_grey1_trns.png")
    assert set(np.unique(transparent.alpha)) == {0, 255}
    grey = read_picture(PICTURES / "la16_grayicc.png")
    assert (grey.pixels.ndim, grey.icc[16:20]) == (2, b"GRAY")
    assert read_picture(PICTURES / "png_gama_chrm.png").metadata.names() == ["gAMA", "cHRM"]
    notes = read_picture(PICTURES / "ppm_16.ppm").notices
    assert notes == ("16 bits a channel are reduced to 8",)


def test_pictures_that_are_refused() -> None:
    with pytest.raises(DataError, match="its IDAT chunk fails its CRC"):
        read_picture(PICTURES / "png_bad_crc_idat.png")
    with pytest.raises(DataError, match="is a 12-bit JPEG, which is not supported"):
        read_picture(PICTURES / "jpg_12bit.jpg")


def test_models_and_points_that_are_refused(run: Run, tmp_path: Path) -> None:
    picture = PICTURES / "clobber_photo.png"
    for name in ("import_junk.safetensors", "import_pklstack.pth"):
        model = FAILS / "models" / name
        refused(run("encode", picture, "-o", tmp_path / "a.hpcm", "--model", model), name)
        refused(run("info", model), name)
    refused(run("table", "--points", FAILS / "results" / "p_null.json"), "p_null.json")
    code, said, _ = run(
        "table",
        *("--points", FAILS / "results" / "p_markup.json"),
        *("--points", FAILS / "results" / "p_markup.json"),
    )
    assert code == 0
    assert "[/x] (published)" in said


def test_a_photo_survives_being_coded_beside_itself(run: Run, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    photo.write_bytes((PICTURES / "clobber_photo.png").read_bytes())
    before = photo.read_bytes()
    assert run("encode", photo, "--model", "tiny")[0] == 0
    refused(run("decode", tmp_path / "photo.hpcm"), "is there already")
    assert photo.read_bytes() == before
    for path in sorted(PICTURES.iterdir()):
        coded, back = tmp_path / "x.hpcm", tmp_path / "x.png"
        code, _, error = run("encode", path, "-o", coded, "--model", "tiny")
        assert code == (2 if "bad_crc" in path.name or "12bit" in path.name else 0), error
        if code == 0:
            assert run("decode", coded, "-o", back)[0] == 0
            with Image.open(back) as image:
                image.load()
