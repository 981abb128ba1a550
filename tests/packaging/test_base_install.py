"""A base install, a wheel and what it requires, codes pictures without torch."""

import shutil
import subprocess
import sys
import sysconfig
import venv
from importlib.metadata import Distribution, distribution
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from PIL import Image

from tests.packaging.test_wheel import ROOT, outside


def required(of: Distribution) -> dict[str, Distribution]:
    """What a distribution requires without its extras, and what these require, by name."""
    found: dict[str, Distribution] = {}
    waiting = [of]
    while waiting:
        for line in waiting.pop().requires or ():
            requirement = Requirement(line)
            if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
                continue
            if requirement.name not in found:
                found[requirement.name] = distribution(requirement.name)
                waiting.append(found[requirement.name])
    return found


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with a wheel and links to what it requires."""
    folder = tmp_path_factory.mktemp("base")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(folder)]
    subprocess.run([*build, str(ROOT)], capture_output=True, check=True)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "env")
    env = {"base": str(folder / "env"), "platbase": str(folder / "env")}
    site = Path(sysconfig.get_path("purelib", vars=env))
    shutil.unpack_archive(wheel, site, "zip")
    (info,) = site.glob("hpcm_scale-*.dist-info")
    for dist in required(Distribution.at(info)).values():
        tops = {file.parts[0] for file in dist.files or () if ".." not in file.parts}
        for top in tops - {"__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(dist.locate_file(top))
    return folder / "env" / "bin" / "python"


def run(python: Path, cwd: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(python), *map(str, arguments)], cwd=cwd, env=outside(), capture_output=True, text=True
    )


@pytest.mark.slow
@pytest.mark.distributed
def test_a_base_install_codes_and_has_no_torch(python: Path, tmp_path: Path) -> None:
    for absent in ("torch", "scipy", "matplotlib", "fsspec"):
        done = run(python, tmp_path, "-c", f"import {absent}")
        assert "ModuleNotFoundError" in done.stderr, absent
    pixels = np.random.default_rng(0).integers(96, 160, (20, 30, 3), dtype=np.uint8)
    photo = Image.fromarray(pixels).resize((300, 200), Image.Resampling.BICUBIC)
    photo.save(tmp_path / "a.png")
    for arguments in (
        ("encode", "a.png", "-o", "a.hpcm", "--verify"),
        ("decode", "a.hpcm", "-o", "b.png"),
        ("info", "a.hpcm"),
        ("encode", "a.png", "-o", "q3.hpcm", "-q", 3, "-j", 1),
    ):
        done = run(python, tmp_path, "-m", "hpcm_scale", *arguments)
        assert done.returncode == 0, done.stderr
    decoded = np.asarray(Image.open(tmp_path / "b.png")).astype(float)
    assert np.square(decoded - np.asarray(photo)).mean() < 100
    done = run(python, tmp_path, "-m", "hpcm_scale", "decode", "a.hpcm", "--engine", "torch")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "pip install 'hpcm-scale[torch]'" in done.stderr
