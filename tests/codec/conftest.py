"""A small HPCM whose symbols vary, and pictures to code with it."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hpcm_scale import cli
from hpcm_scale.codec import bounded_engine
from hpcm_scale.codec.codec import Codec
from hpcm_scale.entropy.coder import SymbolDigest
from hpcm_scale.models.zoo import build, model_config
from hpcm_scale.weights.model_file import ModelInfo, save_model

Run = Callable[..., tuple[int, str, str]]


def program(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """A function that runs hpcm-scale in this process: exit code, standard output and error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["hpcm-scale", *map(str, arguments)])
        capfd.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
        return (code, *capfd.readouterr())

    return run


def watch_symbols(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """Everything that passes a digest from now on: the symbols as coded, or as decoded."""
    seen: list[np.ndarray] = []
    update = SymbolDigest.update
    monkeypatch.setattr(
        SymbolDigest,
        "update",
        lambda self, symbols: (seen.append(symbols.copy()), update(self, symbols))[1],
    )
    return seen


def synthesise_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave g_s so little memory that it runs on pieces."""
    synthesise = bounded_engine.synthesise
    monkeypatch.setattr(
        bounded_engine, "synthesise", lambda *a: synthesise(*a[:5], 1 << 16, *a[6:])
    )


def save_tiny(
    path: Path,
    seed: int = 0,
    lmbda: float | None = 0.013,
    options: Mapping[str, Any] = MappingProxyType({}),
    **overrides: object,
) -> ModelInfo:
    """Write a model file of Base's structure with 16 latent channels, randomly initialised.

    Args:
        options: of `save_model`.
    """
    fields = {
        "name": "tiny",
        "latent_channels": 16,
        "hyper_channels": 8,
        "widths": [8, 8, 16],
        "hyper_width": 8,
        "heads": 4,
    }
    config = model_config("base", overrides=fields | overrides)
    torch.manual_seed(seed)
    network = build(config)
    m = config.latent_channels
    with torch.no_grad():
        # As initialised, latents round to zero. Larger last layers spread y and z; offsets on h_s
        # spread scales over the tables, some too small so that escapes are used, and means off 0.
        network.g_a[-1][0].weight *= 10
        network.h_a[-1][-1].weight *= 3
        last = network.h_s[-1][-1]
        bias = last.pair.project_bias if config.hyper_depths[0] else last.bias
        bias += torch.cat([torch.linspace(0.1, 8, m), torch.linspace(-2, 2, m)])
        for step in network.steps:
            step.scale *= torch.linspace(0.5, 2, step.scale.numel()).view(1, -1, 1, 1)
        network.z_prior.scale *= torch.linspace(0.3, 4, config.hyper_channels).view(1, -1, 1, 1)
        network.z_prior.mean += 0.3
    state = network.state_dict()
    return save_model(path, state, config, lmbda=lmbda, record={"steps": 0}, **options)


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(H, W, 3) uint8: smooth shapes with some texture."""
    rng = np.random.default_rng(seed)
    rows, columns = np.arange(height) / 40, np.arange(width) / 40
    x = rng.normal(0, 6, (height, width, 3)) + 128
    for channel in range(3):
        for _ in range(3):
            a, b, phase = rng.uniform(0.3, 2, 3)
            x[..., channel] += 30 * np.sin(a * rows[:, None] + b * columns + phase)
    return x.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model files tiny.safetensors and other.safetensors."""
    folder = tmp_path_factory.mktemp("models")
    save_tiny(folder / "tiny.safetensors")
    save_tiny(folder / "other.safetensors", seed=1)
    return folder


@pytest.fixture(scope="session")
def codec(models: Path) -> Codec:
    """The codec of tiny.safetensors."""
    return Codec.load(models / "tiny.safetensors")


@pytest.fixture(scope="session")
def fast_codec(models: Path) -> Codec:
    """The same in floating point."""
    return Codec.load(models / "tiny.safetensors", portable=False)


@pytest.fixture(scope="session")
def other_codec(models: Path) -> Codec:
    """The codec of other.safetensors: the same network with other parameters."""
    return Codec.load(models / "other.safetensors")


@pytest.fixture(scope="session")
def make_photo() -> Callable[..., np.ndarray]:
    """`photo`, for tests that choose a size."""
    return photo


@pytest.fixture(scope="session")
def make_model() -> Callable[..., ModelInfo]:
    """`save_tiny`, for tests that change the network."""
    return save_tiny


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], models: Path) -> Run:
    """Run hpcm-scale in this process: exit code, standard output, standard error."""
    monkeypatch.setenv("HPCM_MODELS", str(models))
    return program(monkeypatch, capfd)


@pytest.fixture
def picture(tmp_path: Path, make_photo: Callable[..., np.ndarray]) -> Path:
    """A PNG of 60 × 40 pixels."""
    path = tmp_path / "in" / "photo.png"
    path.parent.mkdir()
    Image.fromarray(make_photo(40, 60)).save(path)
    return path


def refused(result: tuple[int, str, str], *words: str) -> None:
    """Check that a command ended with code 2 and one line that has the words."""
    code, _, error = result
    assert code == 2
    assert error.count("\n") == 1, error
    assert "Traceback" not in error
    for word in words:
        assert word in error
