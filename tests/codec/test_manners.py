"""What `encode` and `decode` do with people's files: nothing lost, nothing replaced unasked."""

import io
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hpcm_scale.codec.codec import Codec
from hpcm_scale.codec.images import Picture, read_picture
from hpcm_scale.weights.model_file import load_model
from tests.codec.conftest import Run, refused
from tests.codec.pictures import XMP, exif_block, profile, saved

PROGRAM = [sys.executable, "-m", "hpcm_scale"]


@pytest.fixture
def tiny(run: Run, monkeypatch: pytest.MonkeyPatch, models: Path) -> list[str]:
    """Options that name the model."""
    return ["--model", "tiny"]


def _folder(path: Path, make_photo: Callable[..., np.ndarray], names: list[str]) -> Path:
    for seed, name in enumerate(names):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(make_photo(16, 24, seed)).save(path / name)
    return path


def test_decoding_beside_the_original_leaves_it(run: Run, picture: Path, tiny: list[str]) -> None:
    before = picture.read_bytes()
    assert run("encode", picture, *tiny)[0] == 0
    coded = picture.with_suffix(".hpcm")
    refused(run("decode", coded), "photo.png is there already", "--force", "--skip-existing")
    refused(run("decode", coded, "-o", picture.parent), "photo.png is there already")
    refused(run("decode", picture.parent), "photo.png is there already")
    refused(run("encode", picture, *tiny), "photo.hpcm is there already")
    assert picture.read_bytes() == before
    code, _, error = run("decode", coded, "--skip-existing")
    assert (code, "1 done before" in error) == (0, True)
    assert picture.read_bytes() == before
    assert run("decode", coded, "--force")[0] == 0
    assert picture.read_bytes() != before


def test_folders_are_entered_and_mirrored(
    run: Run,
    tmp_path: Path,
    tiny: list[str],
    make_photo: Callable[..., np.ndarray],
) -> None:
    names = ["a.png", "deep/er/b.JPG", "deep/c.webp", ".hidden.png", ".git/d.png"]
    folder = _folder(tmp_path / "in", make_photo, names)
    (folder / "notes.txt").write_text("no picture")
    (folder / "x.png").mkdir()
    coded, back = tmp_path / "coded", tmp_path / "back"
    assert run("encode", folder, "-o", coded, *tiny)[0] == 0
    found = sorted(str(path.relative_to(coded)) for path in coded.rglob("*.*"))
    assert found == ["a.hpcm", "deep/c.hpcm", "deep/er/b.hpcm"]
    assert run("decode", coded, "-o", back)[0] == 0
    assert len(list(back.rglob("*.png"))) == 3
    refused(run("encode", folder / "x.png", "-o", coded, *tiny), "has no files to read")
    _folder(folder, make_photo, ["a.jpg"])
    refused(run("encode", folder, "-o", tmp_path / "new", *tiny), "a.hpcm would be written twice")
    assert not (tmp_path / "new").exists()


def test_one_file_is_no_place_for_several(
    run: Run,
    tmp_path: Path,
    tiny: list[str],
    make_photo: Callable[..., np.ndarray],
) -> None:
    folder = _folder(tmp_path / "in", make_photo, ["a.png", "b.png"])
    new = tmp_path / "new.hpcm"
    refused(run("encode", folder / "a.png", folder / "b.png", "-o", new, *tiny), "is one file")
    refused(run("encode", folder, "-o", new, *tiny), "is one file", "name a folder")
    refused(run("encode", folder, "-o", "-", *tiny), "is one file")
    refused(run("decode", "a.hpcm", "b.hpcm", "-o", tmp_path / "c.png"), "is one file")
    assert not new.exists()


def test_a_name_of_255_bytes_is_coded_and_decoded(
    run: Run,
    tmp_path: Path,
    tiny: list[str],
    make_photo: Callable[..., np.ndarray],
) -> None:
    for name in ("a" * 251 + ".png", "é" * 125 + "a.png", "🖼" * 62 + "abc.png"):
        source = tmp_path / name
        assert len(name.encode()) == 255
        Image.fromarray(make_photo(16, 16)).save(source)
        assert run("encode", source, *tiny)[0] == 0
        (coded,) = tmp_path.glob("*.hpcm")
        assert len(coded.name.encode()) <= 255
        source.unlink()
        assert run("decode", coded)[0] == 0
        (back,) = tmp_path.glob("*.png")
        back.unlink()
        coded.unlink()


def test_names_cannot_write_to_the_terminal(
    run: Run,
    tmp_path: Path,
    tiny: list[str],
    make_photo: Callable[..., np.ndarray],
) -> None:
    for name in (b"\x1b[31m.png", "a\u202eb.png".encode(), b"\xff\xfe.png", b"[bold]x.png"):
        source = tmp_path / os.fsdecode(name)
        Image.fromarray(make_photo(16, 16)).save(source)
        code, said, error = run("encode", source, *tiny)
        assert code == 0, error
        assert not any(ord(c) < 32 and c != "\n" for c in said)
        assert "\u202e" not in said
        source.write_bytes(b"nothing")
        _, _, error = run("encode", source, "-o", tmp_path / "new.hpcm", *tiny)
        assert "\x1b[31m.png" not in error


def test_tags_and_profile_come_back_unless_stripped(
    run: Run,
    tmp_path: Path,
    tiny: list[str],
    make_photo: Callable[..., np.ndarray],
) -> None:
    source, coded, back = (tmp_path / name for name in ("a.jpg", "a.hpcm", "b.png"))
    image = Image.fromarray(make_photo(32, 48))
    block = exif_block(6)
    source.write_bytes(
        saved(image, "JPEG", exif=b"Exif\0\0" + block, xmp=XMP, dpi=(300, 300), comment=b"hello")
    )
    code, said, _ = run("encode", source, "-o", coded, *tiny, "--verify")
    assert code == 0
    assert "note: not kept: comment" in said
    assert "EXIF, XMP, dpi" in run("info", coded)[1]
    assert run("decode", coded, "-o", back)[0] == 0
    with Image.open(back) as found:
        assert found.size == (32, 48)  # upright
        assert found.info["exif"].removeprefix(b"Exif\0\0") == exif_block(1)
        assert found.info["xmp"] == XMP.replace(b'"6"', b'"1"')
        assert found.info["dpi"] == pytest.approx((300, 300), abs=0.1)
    _, said, _ = run("decode", coded, "-o", tmp_path / "b.bmp")
    assert "note: BMP has no place for its EXIF, XMP" in said
    for stripped in (
        run("encode", source, "-o", coded, *tiny, "--strip") and coded,
        coded,
    ):
        assert run("decode", stripped, "-o", back, "--strip")[0] == 0
        with Image.open(back) as found:
            assert found.size == (32, 48)
            assert not {"exif", "xmp", "dpi"} & found.info.keys()


def test_a_large_profile_comes_back_and_is_read_again(codec: Codec) -> None:
    icc = profile(b"RGB ", 200) + np.random.default_rng(0).bytes(1_500_000)
    image = Image.new("RGB", (16, 16))
    image.info["icc_profile"] = icc
    from hpcm_scale.codec.image_writer import picture_bytes

    decoded = codec.decompress(codec.encode(image)).picture
    assert read_picture(picture_bytes(decoded, "a.png"), "a.png").icc == icc


def test_profiles_of_other_colours_are_left_out(codec: Codec) -> None:
    from hpcm_scale.codec.image_writer import picture_bytes
    from tests.codec.pictures import chunks_of

    grey = Image.new("L", (8, 8), 99)
    cases = (
        (grey, b"GRAY", 0),  # image, colour space, PNG's colour type of what is written
        (grey, b"RGB ", 2),
        (grey.convert("RGB"), b"RGB ", 2),
    )
    for image, space, colour_type in cases:
        image = image.copy()
        image.info["icc_profile"] = profile(space)
        decoded = codec.decompress(codec.encode(image)).picture
        assert decoded.icc == profile(space)
        assert chunks_of(picture_bytes(decoded, "a.png"))[b"IHDR"][9] == colour_type
    for image, space in ((grey.convert("RGB"), b"GRAY"), (grey, b"CMYK"), (grey, b"Lab ")):
        image = image.copy()
        image.info["icc_profile"] = profile(space)
        picture = read_picture(saved(image, "PNG", icc_profile=profile(space)), "a.png")
        assert picture.icc is None
        assert "does not fit" in " ".join(picture.notices)


@pytest.mark.distributed
def test_several_jobs_write_the_files_of_one(
    run: Run,
    tmp_path: Path,
    make_photo: Callable[..., np.ndarray],
    models: Path,
) -> None:
    folder = _folder(tmp_path / "in", make_photo, ["a.png", "b.png", "c.png"])
    (folder / "bad.png").write_bytes(b"nothing")
    outcomes = {}
    for jobs in ("1", "2"):
        command = [*PROGRAM, "encode", str(folder), "-o", str(tmp_path / jobs), "--jobs", jobs]
        command += ["--model", str(models / "tiny.safetensors"), "--threads", "1"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 2
        assert "1 of 4 files failed; the others are done" in done.stderr
        assert len(done.stdout.splitlines()) == 3
        outcomes[jobs] = {p.name: p.read_bytes() for p in (tmp_path / jobs).iterdir()}
    assert outcomes["1"] == outcomes["2"]
    junk = tmp_path / "junk.safetensors"
    junk.write_bytes(b"junk" * 99)
    result = run("encode", folder, "-o", tmp_path / "3", "--jobs", "2", "--model", junk)
    refused(result, "junk.safetensors: is not a safetensors file")


def test_a_closed_pipe_ends_no_list_of_files(
    tmp_path: Path, make_photo: Callable[..., np.ndarray], models: Path
) -> None:
    folder = _folder(tmp_path / "in", make_photo, [f"{i}.png" for i in range(6)])
    (folder / "3.png").write_bytes(b"nothing")
    command = [*PROGRAM, "encode", str(folder), "-o", str(tmp_path / "out"), "--threads", "1"]
    command += ["--model", str(models / "tiny.safetensors")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline()
    process.stdout.close()
    error = process.stderr.read()
    assert process.wait() == 2
    assert "1 of 6 files failed; the others are done" in error
    assert "Traceback" not in error
    assert "BrokenPipe" not in error
    assert len(list((tmp_path / "out").iterdir())) == 5


def test_a_large_file_shows_its_progress(tmp_path: Path, models: Path) -> None:
    """On a terminal, with one file that takes over a second."""
    noise = np.random.default_rng(0).integers(0, 256, (1400, 1500, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png", compress_level=1)
    leader, follower = pty.openpty()
    command = [*PROGRAM, "encode", str(tmp_path / "a.png"), "--threads", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=follower)
    os.close(follower)
    seen = b""
    while True:
        try:
            part = os.read(leader, 4096)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        seen += part
    os.close(leader)
    said = process.stdout.read().decode()
    assert process.wait() == 0
    assert b"encoding" in seen
    assert b"%" in seen
    assert said.startswith(f"{tmp_path / 'a.png'} 1500x1400")


def test_progress_rises_to_the_end(codec: Codec, make_photo: Callable[..., np.ndarray]) -> None:
    small = Codec(load_model(codec.info.path), memory=1 << 20)
    told: list[float] = []
    data = small.compress(Picture(make_photo(600, 700)), on_progress=told.append).data
    assert len(told) > 20
    assert told == sorted(told)
    assert told[-1] == pytest.approx(1)
    told.clear()
    small.decompress(data, told.append)
    assert len(told) > 20
    assert told == sorted(told)
    assert told[-1] == pytest.approx(1)


def test_verify_finds_more_than_the_models_own_loss(
    run: Run,
    picture: Path,
    tiny: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A fault in what only the decoder does: pixels three levels off in one place."""
    decompress = Codec.decompress

    def faulty(self: Codec, *arguments: object) -> object:
        decoded = decompress(self, *arguments)
        pixels = decoded.picture.pixels.copy()
        pixels[5, 7] ^= 4
        return replace(decoded, picture=replace(decoded.picture, pixels=pixels))

    coded = picture.with_suffix(".hpcm")
    assert run("encode", picture, *tiny, "--verify")[0] == 0
    coded.unlink()
    monkeypatch.setattr(Codec, "decompress", faulty)
    refused(run("encode", picture, *tiny, "--verify"), "photo.png", "does not decode to the")
    assert not coded.exists()


def test_info_of_pictures_and_pipes(
    run: Run,
    picture: Path,
    tiny: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code, said, _ = run("info", picture)
    assert code == 0
    assert "photo.png, PNG" in said
    assert "60x40, RGB" in said
    assert run("encode", picture, *tiny)[0] == 0
    for path, words in ((picture, "-, PNG"), (picture.with_suffix(".hpcm"), "-, .hpcm version 1")):
        stdin = io.TextIOWrapper(io.BytesIO(path.read_bytes()))
        monkeypatch.setattr(sys, "stdin", stdin)
        code, said, _ = run("info", "-")
        assert code == 0
        assert words in said
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"nothing")))
    refused(run("info", "-"), "-: is not an image")


def test_a_picture_is_compared_with_its_coded_self(
    run: Run,
    picture: Path,
    tiny: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    coded, back = tmp_path / "a.hpcm", tmp_path / "b.png"
    assert run("encode", picture, "-o", coded, *tiny)[0] == 0
    assert run("decode", coded, "-o", back)[0] == 0
    said = {run("compare", picture, other)[1].split(":")[1].split()[0] for other in (coded, back)}
    assert len(said) == 1  # the same dB
    assert (tmp_path / "side_by_side.png").is_file()
    assert (tmp_path / "side_by_side.2.png").is_file()  # the first is not replaced
    refused(run("compare", picture, back, "-o", tmp_path), "is a folder")
    refused(run("compare", picture, back, "-o", tmp_path / "c"), "extension '' is not one of")
    refused(run("compare", picture, back, "-o", tmp_path / "c.tga"), "is not one of")
    refused(run("compare", picture, back, "-o", back), "is one of the pictures")
    assert run("compare", picture, back, "-o", tmp_path / "d.webp")[0] == 0


def test_absurd_machines_are_refused_in_one_line(run: Run, picture: Path) -> None:
    for options, words in (
        (["--memory", "inf"], "--memory: inf is not a number of GiB"),
        (["--device", "meta"], "--device: 'meta' cannot be used"),
        (["--threads", "100000"], "--threads: 100000 is above"),
    ):
        refused(run("encode", picture, *options), words)
        result = run("eval", "--data", picture.parent, "--codecs", "jpeg", *options)
        refused(result, words)
    assert not picture.with_suffix(".hpcm").exists()


def test_the_shell_completes_names(models: Path) -> None:
    environment = os.environ | {
        "HPCM_MODELS": str(models),
        "_HPCM_SCALE_COMPLETE": "complete_bash",
        "COMP_WORDS": "hpcm-scale encode --model t",
        "COMP_CWORD": "3",
    }
    program = [sys.executable, "-c", "from hpcm_scale.cli import main; main()"]
    program = [sys.executable, "-c", "import sys; sys.argv[0] = 'hpcm-scale'; " + program[-1]]
    done = subprocess.run(program, capture_output=True, text=True, env=environment)
    assert done.stdout.split() == ["tiny"], done.stderr
    verbs = environment | {"COMP_WORDS": "hpcm-scale enc", "COMP_CWORD": "1"}
    done = subprocess.run(program, capture_output=True, text=True, env=verbs)
    assert done.stdout.split() == ["encode"], done.stderr


def test_help_shows_what_people_need_first(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, said, _ = run("encode", "--help")
    assert code == 0
    first = said[said.index("─ Options ─") : said.index("─ Models ─")]
    for option in ("--output", "--quality", "--verify", "--strip", "--jobs", "--force"):
        assert option in first
    for option in ("--model", "--fast", "--device", "--threads", "--memory"):
        assert option not in first
        assert option in said


def test_decoding_imports_neither_scipy_nor_a_compiler():
    """What a verb does not use costs a small picture a tenth of its time, or more."""
    code = (
        "import sys, numpy as np; from hpcm_scale.cli import app\n"
        "from hpcm_scale import Codec, bundled_model\n"
        "for name in ('w0.125-0.013', 'compact'):\n"
        "    codec = Codec.load(bundled_model(name))\n"
        "    codec.decode(codec.encode(np.zeros((64, 64, 3), np.uint8)))\n"
        "unused = ('scipy', 'torch._dynamo', 'sympy', 'deepspeed', 'rich.console',"
        " 'hpcm_scale.entropy.exact.peer_registry', 'hpcm_scale.models.storage_tracker')\n"
        "print([name for name in (*unused, *sys.modules) if name in sys.modules and"
        " (name in unused or name.startswith('hpcm_scale.models.peers.'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_decoding_a_small_file_imports_no_torch(picture: Path, run: Run) -> None:
    coded = picture.with_suffix(".hpcm")
    assert run("encode", picture, "--model", "w0.125-0.013")[0] == 0
    code = (
        "import sys; from hpcm_scale.cli import app\n"
        f"sys.argv = ['hpcm-scale', 'decode', {str(coded)!r}, '-o', {str(coded) + '.png'!r}]\n"
        "app(standalone_mode=False)\n"
        "print([name for name in ('torch', 'scipy', 'rich.console') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
