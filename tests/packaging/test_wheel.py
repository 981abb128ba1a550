"""A wheel, installed outside any checkout, does what the checkout does."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
LADDER = """
name: tiny
out: {out}
sizes: [{{width: 0.025}}, {{width: 0.03}}]
crops: [8]
rate: {{by: width, reference: 0.025, lr: 1.0e-3, exponent: 0, source: none}}
run:
  data: {{train: {data}, streams: 2, workers: 0, shuffle_buffer: 4, crop: 256}}
  batch: 2
  deepspeed: zero0
  checkpoint_activations: false
  validate_every: 2
  log_every: 1
"""
RUN = """
name: small
out: {out}
model: {{width: 0.025}}
data: {{train: {data}, streams: 2, workers: 0, shuffle_buffer: 4}}
steps: 2
batch: 2
log_every: 1
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The installed program's path: a fresh environment with a wheel, and nothing of the checkout.

    The other packages are those of the environment that runs the tests, found through a path file
    that leaves its own (editable) installation of this package out.
    """
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(folder)]
    done = subprocess.run([*build, str(ROOT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "env", with_pip=True)
    python = folder / "env" / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--no-deps", "--no-index", str(wheel)]
    done = subprocess.run(install, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    purelib = subprocess.run(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
    ).stdout.strip()
    # Appended after the environment's own folder, and not processed as a site: no .pth of it runs.
    (Path(purelib) / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def outside() -> dict[str, str]:
    """The environment, without what would lead back to the checkout."""
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return kept | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}


def run(python: Path, cwd: Path, *arguments: object) -> str:
    done = subprocess.run(
        [str(python), "-m", "hpcm_scale", *map(str, arguments)],
        cwd=cwd,
        env=outside(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.distributed
def test_the_whole_chain_runs_from_a_wheel(program, tmp_path):
    found = subprocess.run(
        [str(program), "-c", "import hpcm_scale; print(hpcm_scale.__file__)"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=outside(),
    ).stdout
    assert found
    assert str(ROOT) not in found
    configs = Path(found.strip()).parent / "configs"
    installed = {path.relative_to(configs) for path in configs.rglob("*") if path.is_file()}
    there = {path.relative_to(ROOT / "configs") for path in (ROOT / "configs").rglob("*")}
    files = {path for path in there if (ROOT / "configs" / path).is_file()}
    assert installed == {path for path in files if "records" not in path.parts}
    rng = np.random.default_rng(0)
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(12):
        small = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(small).resize((320, 320), Image.Resampling.BICUBIC).save(
            photos / f"{i}.png"
        )
    photo = photos / "0.png"
    run(program, tmp_path, "encode", photo, "-o", "a.hpcm")
    run(program, tmp_path, "decode", "a.hpcm", "-o", "a.png")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("min_side: 256\nval: {names: ['1', '2']}\n")
    run(program, tmp_path, "pack", photos, "shards", "--recipe", recipe)
    (tmp_path / "run.yaml").write_text(RUN.format(out="runs", data="shards"))
    run(program, tmp_path, "train", "run.yaml", "-n", 2)
    assert (tmp_path / "runs/small/checkpoints/latest").read_text() == "step-00000002\n"
    run(program, tmp_path, "export", "runs/small", "small.safetensors")
    (tmp_path / "ladder.yaml").write_text(LADDER.format(out="ladder", data="shards"))
    run(program, tmp_path, "ladder", "run", "ladder.yaml")
    run(program, tmp_path, "fit", "ladder", "-o", "report")
    assert (tmp_path / "report/law.json").is_file()
    run(program, tmp_path, "encode", photo, "-o", "b.hpcm", "--model", "small.safetensors")
