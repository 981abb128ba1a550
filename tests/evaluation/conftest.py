"""Models of one family, pictures, and the program run in this process."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hpcm_scale.models.zoo import build, model_config
from hpcm_scale.weights.model_file import save_model
from tests.codec.conftest import Run, program

SHARED = Path(os.environ.get("HPCM_SHARED", Path(__file__).parents[3] / "shared"))


@pytest.fixture(scope="session")
def results() -> Path:
    """The folder of published R-D points; skips where it is not."""
    folder = SHARED / "data" / "results"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there (HPCM_SHARED names the folder of development data)")
    return folder


@pytest.fixture(scope="session")
def kodak() -> Path:
    """The folder of the 24 Kodak pictures; skips where it is not."""
    folder = SHARED / "data" / "kodak"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there (HPCM_SHARED names the folder of development data)")
    return folder


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two tiny models of one family: at the larger λ, finer latents."""
    fields = {
        "name": "tiny",
        "latent_channels": 16,
        "hyper_channels": 8,
        "widths": [8, 8, 16],
        "hyper_width": 8,
        "heads": 4,
    }
    config = model_config("base", overrides=fields)
    folder = tmp_path_factory.mktemp("models")
    paths = []
    for lmbda, gain in ((0.013, 6), (0.05, 20)):
        torch.manual_seed(0)
        network = build(config)
        with torch.no_grad():
            # As initialised, latents round to zero.
            network.g_a[-1][0].weight *= gain
            network.h_s[-1][-1].pair.project_bias[:16] += gain / 6
        paths.append(folder / f"tiny-{lmbda}.safetensors")
        save_model(paths[-1], network.state_dict(), config, lmbda=lmbda)
    return paths


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(H, W, 3) uint8: smooth shapes with some texture."""
    rng = np.random.default_rng(seed)
    rows, columns = np.arange(height)[:, None, None] / 40, np.arange(width)[None, :, None] / 40
    a, b, phase = rng.uniform(0.3, 2, (3, 3, 3))
    waves = sum(np.sin(a[k] * rows + b[k] * columns + phase[k]) for k in range(3))
    noise = rng.normal(0, 6, (height, width, 3))
    return (128 + 30 * waves + noise).clip(0, 255).astype(np.uint8)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of two PNGs, 192×176 and 176×192, and one file that is none."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, sides in enumerate(((176, 192), (192, 176))):
        Image.fromarray(photo(*sides, seed=i)).save(folder / f"{i}.png")
    (folder / "LICENSE.txt").write_text("not a picture")
    return folder


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run hpcm-scale in this process: exit code, standard output, standard error."""
    return program(monkeypatch, capfd)
