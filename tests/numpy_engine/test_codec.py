"""Files coded by one engine and decoded by the other: the same symbols, whatever coded them."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hpcm_scale.codec import container
from hpcm_scale.codec.codec import Codec
from hpcm_scale.codec.images import picture_of, read_picture
from hpcm_scale.errors import BitstreamError, CheckpointError, ConfigError
from hpcm_scale.weights.stored_model import bundled_model
from tests.codec.conftest import Run, refused, watch_symbols
from tests.codec.golden.decode import HERE, MODELS, NAMES

Photo = Callable[..., np.ndarray]
Model = Callable[..., object]
ENGINES = ("torch", "numpy")


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """Everything that passes the digest: the symbols as coded, or as decoded."""
    return watch_symbols(monkeypatch)


@pytest.mark.parametrize("size", [(256, 256), (1, 1), (257, 255), (300, 64), (40, 600)])
@pytest.mark.parametrize("memory", [2 << 30, 1 << 16])
def test_each_engine_decodes_what_the_other_made(
    size: tuple[int, int], memory: int, models: Path, make_photo: Photo, seen: list[np.ndarray]
) -> None:
    path = models / "tiny.safetensors"
    codecs = [Codec.load(path, engine=name, memory=memory) for name in ENGINES]
    image = Image.fromarray(make_photo(*size))
    if size == (300, 64):
        image = image.convert("L")
    for maker in codecs:
        data = maker.encode(image)
        made = seen[:]
        pictures = []
        for codec in codecs:
            seen.clear()
            pictures.append(np.asarray(codec.decode(data)).astype(int))
            assert len(seen) == len(made) == 12 * container.read(data).header.tiles
            assert all(np.array_equal(a, b) for a, b in zip(seen, made, strict=True))
        # g_s is in floating point in both.
        assert np.abs(pictures[0] - pictures[1]).max() <= 1
        seen.clear()


def test_models_of_many_rates(make_model: Model, make_photo: Photo, tmp_path: Path) -> None:
    path = tmp_path / "many.safetensors"
    make_model(path, lmbda=None, rates=(0.002, 0.02, 0.2), context_channels=32)
    ours, theirs = (Codec.load(path, engine=name) for name in ("numpy", "torch"))
    pixels = make_photo(130, 300)
    sizes = []
    for quality in (1, 30.5, 100):
        data = ours.encode(pixels, quality)
        sizes.append(len(data))
        pair = [np.asarray(codec.decode(data)).astype(int) for codec in (ours, theirs)]
        assert np.abs(pair[0] - pair[1]).max() <= 1
    assert sizes == sorted(sizes)
    limit = round((sizes[0] + sizes[2]) / 2)
    assert 0.97 * limit < len(ours.encode(pixels, size=limit)) <= limit


@pytest.mark.parametrize("name", NAMES)
def test_golden_files_decode(name: str) -> None:
    codec = Codec.load(HERE / f"{MODELS[name]}.safetensors", engine="numpy")
    found = np.asarray(codec.decode((HERE / f"{name}.hpcm").read_bytes())).astype(int)
    assert np.abs(found - np.asarray(Image.open(HERE / f"{name}.png"))).max() <= 1


def test_the_picture_an_encoder_promises_is_what_decodes(models: Path, make_photo: Photo) -> None:
    codec = Codec.load(models / "tiny.safetensors", engine="numpy", memory=1 << 20)
    picture = picture_of(make_photo(300, 500))
    encoded = codec.compress(picture, estimate=True, reconstruct=True)
    assert encoded.estimated_bits is None  # densities are torch's
    decoded = codec.decompress(encoded.data).picture.pixels
    assert encoded.reconstruction is not None
    assert np.abs(decoded.astype(int) - encoded.reconstruction).max() <= 1


def test_floating_point_files_are_torch_s(models: Path, make_photo: Photo) -> None:
    path = models / "tiny.safetensors"
    data = Codec.load(path, portable=False, engine="torch").encode(make_photo(40, 40))
    with pytest.raises(BitstreamError, match=r"--fast\) needs torch"):
        Codec.load(path, engine="numpy").decode(data)
    with pytest.raises(CheckpointError, match=r"--fast\) needs torch"):
        Codec.load(path, portable=False, engine="numpy").encode(make_photo(40, 40))


def test_unknown_engines_and_devices_are_refused(models: Path) -> None:
    for arguments in ({"engine": "jax"}, {"engine": "numpy", "device": "cuda"}):
        with pytest.raises(ConfigError):
            Codec.load(models / "tiny.safetensors", **arguments)


def test_the_verbs_take_the_engine(run: Run, picture: Path, tmp_path: Path) -> None:
    out, back = tmp_path / "a.hpcm", tmp_path / "a.png"
    model = ("-m", "tiny", "--engine", "numpy")
    code, said, error = run("encode", picture, "-o", out, *model, "--verify", "-v")
    assert code == 0, error
    assert "verified" in said
    assert run("decode", out, "-o", back, "--engine", "numpy", "--threads", 1)[0] == 0
    assert Image.open(back).size == (60, 40)
    refused(run("decode", out, "-o", back, "--engine", "numpy", "--device", "cuda"), "--engine")
    refused(run("decode", out, "-o", back, "--engine", "jax"), "--engine", "jax")
    refused(run("encode", picture, "--fast", "-o", out, *model), "needs torch")


WITHOUT = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "scipy", "matplotlib", "fsspec", "deepspeed"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
"""


def _without_torch(code: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root)}
    return subprocess.run(
        [sys.executable, "-c", WITHOUT + code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )


def _program(tmp_path: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    code = "from hpcm_scale.cli import main\nsys.argv = ['hpcm-scale', *{!r}]\nmain()"
    return _without_torch(code.format(list(map(str, arguments))), tmp_path)


def test_everything_needed_to_code_imports_without_torch(picture: Path, tmp_path: Path) -> None:
    done = _program(tmp_path, "encode", picture, "-o", "a.hpcm")
    assert done.returncode == 0, done.stderr
    for arguments in (
        ("decode", "a.hpcm", "-o", "a.png"),
        ("decode", "a.hpcm", "-o", "b.png", "--engine", "numpy", "--threads", 1),
        ("info", "a.hpcm"),
        ("info", picture),
        ("info", bundled_model("w0.125-0.013")),
    ):
        done = _program(tmp_path, *arguments)
        assert done.returncode == 0, done.stderr
    assert read_picture(tmp_path / "a.png").width == 60
    code = (
        "import hpcm_scale\nprint(hpcm_scale.Codec.load(hpcm_scale.bundled_model('w0.125-0.013'))"
    )
    done = _without_torch(code + ".info.label)", tmp_path)
    assert done.stdout == "base-w0.125-0.013\n", done.stderr


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (("encode", "{picture}", "--engine", "torch", "-o", "a.hpcm"), "torch"),
        (("encode", "{picture}", "--device", "cuda", "-o", "a.hpcm"), "torch"),
        (("info", "base"), "torch"),
        (("fit", "somewhere", "-o", "report"), "fit"),
        (("bench", "codec", "{picture}"), "torch"),
    ],
)
def test_what_needs_an_extra_says_so_in_one_line(
    arguments: tuple[str, ...], extra: str, picture: Path, tmp_path: Path
) -> None:
    done = _program(tmp_path, *(a.format(picture=picture) for a in arguments))
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert f"pip install 'hpcm-scale[{extra}]'" in done.stderr
