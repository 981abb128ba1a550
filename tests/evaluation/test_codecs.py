"""Every codec of an evaluation writes real files, and better ones at better qualities."""

import io
import shutil
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hpcm_scale.errors import ConfigError, DataError
from hpcm_scale.evaluation.codecs import PILLOW, model_settings, pillow_settings
from hpcm_scale.evaluation.command_codec import (
    CommandCodec,
    command_settings,
    read_command_codec,
)
from hpcm_scale.evaluation.comparison_page import nearest_in_size
from hpcm_scale.units import mse_of
from tests.evaluation.conftest import photo

BEGINNINGS = {
    "jpeg": b"\xff\xd8\xff",
    "webp": b"RIFF",
    "jpeg2000": b"\xff\x4f\xff\x51",
    "avif": b"\x00\x00\x00",
    "jxl": b"\xff\x0a",
}


@pytest.mark.parametrize("name", PILLOW)
def test_a_sweep_is_real_files_of_rising_size_and_quality(name: str):
    pixels = photo(96, 128)
    sizes, errors = [], []
    for setting in pillow_settings([name]):
        coder = setting.open()
        encoded = coder.encode(pixels)
        assert encoded.value.startswith(BEGINNINGS[name])
        assert encoded.seconds > 0
        # What any reader of the format sees, as far as Pillow is one.
        seen = np.asarray(Image.open(io.BytesIO(encoded.value)).convert("RGB"))
        decoded = coder.decode(encoded.value)
        assert np.array_equal(decoded.value, seen)
        sizes.append(len(encoded.value))
        errors.append(mse_of(pixels, decoded.value))
    assert len(sizes) >= 5
    assert sizes == sorted(sizes)
    # Rate control may trade a hair of quality between two neighbours.
    assert all(after < 1.02 * before for before, after in pairwise(errors))
    assert errors[-1] < 0.7 * errors[0]


@pytest.mark.parametrize("name", PILLOW)
def test_the_nearest_size_is_near(name: str):
    """Between two codings of the sweep, by bisection: nearer than either."""
    pixels = photo(96, 128)
    sizes = [len(s.open().encode(pixels).value) for s in pillow_settings([name])]
    target = int((sizes[2] * sizes[3]) ** 0.5)
    found = len(nearest_in_size(PILLOW[name], pixels, target))
    assert abs(found - target) <= min(abs(size - target) for size in sizes)
    assert abs(found / target - 1) < 0.2


@pytest.mark.skipif(shutil.which("cwebp") is None, reason="cwebp (Debian: webp) is not installed")
def test_cwebp_by_command_line_is_webp():
    """Its files decode alike by dwebp and by Pillow, and shrink with the quality."""
    codec = read_command_codec(
        "name=cwebp; extension=.webp; quality=20, 80;"
        "encode=cwebp -quiet -q {quality} {input} -o {output};"
        "decode=dwebp -quiet {input} -o {output}"
    )
    pixels = photo(64, 96)
    sizes = []
    for setting in command_settings(codec):
        coder = setting.open()
        data = coder.encode(pixels).value
        seen = np.asarray(Image.open(io.BytesIO(data), formats=("WEBP",)).convert("RGB"))
        assert np.array_equal(coder.decode(data).value, seen)
        sizes.append(len(data))
    assert sizes[0] < sizes[1]


def test_a_command_gets_whole_arguments_and_its_failure_is_told(tmp_path: Path):
    """A codec that copies the PNG: lossless, in a folder and with a quality of awkward names."""
    copy = tmp_path / "copy it.py"
    copy.write_text(
        "import shutil, sys; assert sys.argv[3] == '1; rm $X'; shutil.copy(*sys.argv[1:3])"
    )
    line = f"'{sys.executable}' '{copy}' {{input}} {{output}}"
    codec = CommandCodec(
        name="copy", encode=f"{line} {{quality}}", decode=f"{line} '1; rm $X'", quality=["1; rm $X"]
    )
    (setting,) = command_settings(codec)
    pixels = photo(20, 30)
    data = setting.open().encode(pixels).value
    assert np.array_equal(setting.open().decode(data).value, pixels)
    (broken,) = command_settings(codec.model_copy(update={"quality": ("2",)}))
    with pytest.raises(DataError, match=r"exit code 1, no output file; .*AssertionError"):
        broken.open().encode(pixels)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name=a; encode=cp {input} {output}; decode=cp {input} {output}", "quality"),
        ("name=a; quality=1; encode=cp {input}; decode=cp {input} {output}", "no {output}"),
        ("name=a; quality=1; encode=no-such {input} {output}; decode=cp {input} {output}",
         "no-such is not installed"),
        ("name=a; quality=1; speed=2; encode=cp {input} {output}; decode=cp {input} {output}",
         "speed: unknown key"),
        ("absent.yaml", "absent.yaml: cannot be read"),
    ],
)  # fmt: skip
def test_a_wrong_codec_is_one_line(text: str, words: str):
    with pytest.raises(ConfigError, match=words.replace("{", r"\{")):
        read_command_codec(text)


def test_a_codec_from_yaml(tmp_path: Path):
    path = tmp_path / "codec.yaml"
    path.write_text(
        "name: copy\nquality: [1, 2.5, max]\n"
        "encode: cp {input} {output}\ndecode: cp {input} {output}\n"
    )
    assert read_command_codec(str(path)).quality == ("1", "2.5", "max")


def test_models_of_one_architecture_are_one_curve(models: list[Path], tmp_path: Path):
    from safetensors.torch import load_file

    from hpcm_scale.weights.model_file import save_model
    from hpcm_scale.weights.stored_model import read_info

    info = read_info(models[0])
    tensors = {k: v for k, v in load_file(models[0]).items() if not k.startswith("coding.")}
    tensors["z_prior.mean"] += 0.5
    twin, wider = tmp_path / "twin.safetensors", tmp_path / "wider.safetensors"
    save_model(twin, tensors, info.config, lmbda=info.lmbda)
    save_model(wider, tensors, info.config.model_copy(update={"name": "other"}), lmbda=0.05)
    settings = model_settings([models[1], wider, twin, models[0]], "cpu", 1 << 30)
    assert {(s.curve, s.name, s.model.path) for s in settings} == {
        ("HPCM tiny", "0.013", twin),
        ("HPCM tiny #2", "0.013", models[0]),
        ("HPCM tiny", "0.05", models[1]),
        ("HPCM other", "0.05", wider),
    }
    with pytest.raises(ConfigError, match="is the same model as"):
        model_settings([models[0], models[1], models[0]], "cpu", 1 << 30)


def test_unknown_codecs_are_named():
    with pytest.raises(ConfigError, match="'gif' is not one of jpeg, webp"):
        pillow_settings(["jpeg", "gif"])
