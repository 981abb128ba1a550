import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hpcm_scale.weights.stored_model import BUNDLED, models_in
from tests.codec.conftest import Run, refused, save_tiny


def test_encode_decode_and_info_say_what_they_did(run: Run, picture: Path, tmp_path: Path) -> None:
    coded, out = tmp_path / "a.hpcm", tmp_path / "out" / "a.png"
    code, said, _ = run("encode", picture, "-o", coded, "--model", "tiny", "-v", "--verify")
    assert code == 0
    first = said.splitlines()[0]
    assert f"{picture} 60x40 -> {coded}  " in first
    assert f"{8 * coded.stat().st_size / 2400:.3f} bpp" in first
    assert "model tiny-0.013" in first
    assert "dB" in first
    assert "the model's estimate" in said
    # The file names its model, and the folder has it.
    assert run("decode", coded, "-o", out)[0] == 0
    assert Image.open(out).size == (60, 40)
    code, said, _ = run("info", coded)
    assert code == 0
    assert "60x40, 8-bit RGB" in said
    assert run("info", coded.with_name("b.hpcm"))[0] == 2


def test_info_of_a_model_names_its_identity(run: Run, models: Path) -> None:
    code, said, _ = run("info", models / "tiny.safetensors")
    assert code == 0
    assert "tiny-0.013" in said
    assert "config.latent_channels  16" in said


def test_fast_is_marked_in_the_file_and_said(run: Run, picture: Path, tmp_path: Path) -> None:
    usual, fast = tmp_path / "usual.hpcm", tmp_path / "fast.hpcm"
    assert "portable" not in run("encode", picture, "-o", usual, "-m", "tiny")[1]
    assert "fast, not portable" in run("encode", picture, "-o", fast, "-m", "tiny", "--fast")[1]
    assert "exact, portable" in run("info", usual)[1]
    assert "floating point (--fast), not portable" in run("info", fast)[1]
    # Decoding does as the file says, with no option.
    for coded in (usual, fast):
        assert run("decode", coded, "-o", tmp_path / "a.png")[0] == 0


@pytest.mark.parametrize("extension", [".jpg", ".webp", ".png"])
def test_the_extension_chooses_the_output_format(
    run: Run, picture: Path, tmp_path: Path, extension: str
) -> None:
    run("encode", picture, "-o", tmp_path / "a.hpcm", "-m", "tiny")
    assert run("decode", tmp_path / "a.hpcm", "-o", tmp_path / f"b{extension}")[0] == 0
    kind = Image.open(tmp_path / f"b{extension}").format
    assert kind == {".jpg": "JPEG", ".webp": "WEBP", ".png": "PNG"}[extension]


def test_a_bad_file_among_several_spares_the_rest(run: Run, picture: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"nothing")
    folder = tmp_path / "coded"
    code, said, error = run("encode", bad, picture, "-o", folder, "-m", "tiny")
    assert code == 2
    assert "bad.png: is not an image" in error
    assert "1 of 2 files failed" in error
    assert f"-> {folder / 'photo.hpcm'}" in said
    assert [p.name for p in folder.iterdir()] == ["photo.hpcm"]


def test_pipes_carry_pictures_both_ways(models: Path, picture: Path) -> None:
    """In processes of their own: what reaches standard output must be the file and no word more."""
    program = [sys.executable, "-m", "hpcm_scale.cli"]
    model = ["--model", str(models / "tiny.safetensors"), "--threads", "1"]
    coded = subprocess.run(
        [*program, "encode", "-", *model],
        input=picture.read_bytes(),
        capture_output=True,
        check=True,
    )
    assert coded.stdout.startswith(b"HPC")
    assert b"bpp" in coded.stderr
    decoded = subprocess.run(
        [*program, "decode", "-", *model], input=coded.stdout, capture_output=True, check=True
    )
    assert Image.open(io.BytesIO(decoded.stdout)).size == (60, 40)


def test_bad_input_is_one_line_exit_code_2_and_no_file(
    run: Run, picture: Path, tmp_path: Path, models: Path
) -> None:
    coded = tmp_path / "a.hpcm"
    assert run("encode", picture, "-o", coded, "-m", "tiny")[0] == 0
    good = coded.read_bytes()
    damaged, short = tmp_path / "damaged.hpcm", tmp_path / "short.hpcm"
    damaged.write_bytes(good[:40] + bytes([good[40] ^ 1]) + good[41:])
    short.write_bytes(good[:-9])
    junk = tmp_path / "junk.safetensors"
    junk.write_bytes(b"junk" * 99)
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"nothing")
    out = tmp_path / "out" / "x.png"

    refused(run("decode", damaged, "-o", out), str(damaged), "checksum")
    refused(run("decode", short, "-o", out), str(short), "truncated")
    refused(run("decode", picture, "-o", out), str(picture), "is not a .hpcm file")
    refused(run("decode", tmp_path / "no.hpcm", "-o", out), "no.hpcm", "cannot be read")
    refused(run("decode", coded, "-o", out, "-m", "other"), str(coded), "was made by model")
    refused(run("decode", coded, "-o", tmp_path / "out" / "x.gif"), "extension '.gif'")
    refused(run("decode", coded, "-o", out, "-m", junk), "junk.safetensors")
    refused(run("decode", coded, "-o", out, "--device", "tpu9"), "--device")
    new = tmp_path / "out" / "x.hpcm"
    refused(run("encode", picture, "-o", out, "-m", "tiny"), str(out), ".hpcm")
    refused(run("encode", picture, "-o", new, "-m", "absent"), "absent", "other, tiny")
    refused(run("encode", picture, "-o", new, "-q", "3"), "--quality: 3", "1 to 2")
    refused(run("encode", coded, "-o", new, "-m", "tiny"), str(coded), "is not an image")
    refused(run("encode", picture, "-o", picture, "-m", "tiny"), "overwritten")
    refused(run("encode", picture, picture, "-o", tmp_path, "-m", "tiny"), "written twice")
    refused(run("encode", picture, "-", "-o", tmp_path, "-m", "tiny"), "give it alone")
    refused(run("info", junk), "junk.safetensors")
    refused(run("info", bad), "bad.png", "is not an image")
    assert not (tmp_path / "out").exists()
    assert sorted(p.name for p in picture.parent.iterdir()) == ["photo.png"]


def test_an_output_given_as_an_input_is_noticed_at_once(
    run: Run, picture: Path, tmp_path: Path, make_photo: Callable[..., np.ndarray]
) -> None:
    coded, back = tmp_path / "b.hpcm", tmp_path / "b.png"
    refused(run("encode", picture, coded, "-m", "tiny"), f"{coded}: ", f"-o {coded}")
    assert run("encode", picture, "-o", coded, "-m", "tiny")[0] == 0
    was = coded.read_bytes()
    # A result from before is no picture either.
    refused(run("encode", picture, coded, "-m", "tiny", "--force"), f"-o {coded}")
    assert coded.read_bytes() == was
    refused(run("decode", coded, back), f"{back}: ", f"-o {back}")
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["b.hpcm", "photo.png"]
    back.write_bytes(b"of another program")
    refused(run("decode", coded, back, "--force"), f"-o {back}")
    assert back.read_bytes() == b"of another program"

    # What can be read is an input, whatever its name; so is what is not there but no result.
    odd, odd_picture = tmp_path / "odd" / "c.png", tmp_path / "odd" / "d.hpcm"
    odd.parent.mkdir()
    odd.write_bytes(was)
    Image.fromarray(make_photo(20, 30)).save(odd_picture, format="PNG")
    assert run("decode", coded, odd, "--force", "-o", f"{tmp_path}/out/")[0] == 0
    assert run("encode", picture, odd_picture, "-m", "tiny", "-o", f"{tmp_path}/out/")[0] == 0
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names == ["b.png", "c.png", "d.hpcm", "photo.hpcm"]
    missing = run("encode", picture, tmp_path / "no.png", "-m", "tiny")
    assert missing[0] == 2
    assert "no.png: cannot be read" in missing[2]
    assert picture.with_suffix(".hpcm").exists()


def test_bench_reports_both_ways_and_wants_pictures_of_one_size(
    run: Run, picture: Path, tmp_path: Path, make_photo: Callable[..., np.ndarray]
) -> None:
    code, said, _ = run("bench", "codec", picture, "-m", "tiny", "--repeats", 1)
    assert code == 0
    assert "encode" in said
    assert "decode" in said
    assert "fp32" in said
    assert "decode pixels" in said
    assert "over fast" in said
    assert "over fast" not in run("bench", "codec", picture, "-m", "tiny", "--fast")[1]
    Image.fromarray(make_photo(41, 60)).save(tmp_path / "other.png")
    result = run("bench", "codec", picture, tmp_path / "other.png", "-m", "tiny")
    refused(result, "60x41", "pictures of one size")


def test_a_failed_verification_leaves_no_file(
    run: Run, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault between encoder and file: the bytes are damaged before they are written."""
    from hpcm_scale.codec import container

    write = container.write
    monkeypatch.setattr(container, "write", lambda c: write(c)[:-5] + b"\1\2\3\4\5")
    coded = tmp_path / "a.hpcm"
    refused(run("encode", picture, "-o", coded, "-m", "tiny", "--verify"), "damaged")
    assert not coded.exists()


def test_quality_chooses_among_the_rates_of_models(
    run: Run, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "rates"
    folder.mkdir()
    for seed, lmbda in enumerate((0.05, 0.0018, 0.013)):
        save_tiny(folder / f"{seed}.safetensors", seed=seed, lmbda=lmbda)
    (folder / "a download cut short.safetensors").write_bytes(b"0")
    monkeypatch.setenv("HPCM_MODELS", str(folder))
    for quality, lmbda in ((["-q", "1"], 0.0018), ([], 0.013), (["-q", "3"], 0.05)):
        code, said, _ = run("encode", picture, "-o", tmp_path / "a.hpcm", *quality)
        assert code == 0
        assert f"model tiny-{lmbda:g}" in said
        assert run("decode", tmp_path / "a.hpcm", "-o", tmp_path / "a.png")[0] == 0


def test_pictures_are_coded_right_after_installation(
    run: Run, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HPCM_MODELS")
    files = []
    for quality in ("1", "50", "100"):
        coded = tmp_path / f"{quality}.hpcm"
        code, _, error = run("encode", picture, "-o", coded, "-q", quality, "--verify")
        assert code == 0, error
        files.append(coded.stat().st_size)
        assert run("decode", coded, "-o", tmp_path / "out.png")[0] == 0
    assert files == sorted(files)
    bundled = sum(path.stat().st_size for path in models_in(BUNDLED).values())
    assert bundled < 12e6
