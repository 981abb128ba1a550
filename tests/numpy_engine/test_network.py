"""The network in NumPy against the int64 reference, torch's transforms and torch's checks."""

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from hpcm_scale.entropy.exact.arithmetic import ORIGINAL, Arithmetic
from hpcm_scale.entropy.exact.product import Product as TorchProduct
from hpcm_scale.errors import CheckpointError
from hpcm_scale.models import grids as torch_grids
from hpcm_scale.models.schedule import schedule_named
from hpcm_scale.numpy_engine import windows
from hpcm_scale.numpy_engine.exact_product import Product
from hpcm_scale.numpy_engine.model import load_numpy
from hpcm_scale.numpy_engine.moves import StepGrids
from hpcm_scale.numpy_engine.network import Network
from hpcm_scale.numpy_engine.parameters import Parameters
from hpcm_scale.weights.model_file import load_model
from hpcm_scale.weights.stored_model import BUNDLED, models_in
from tests.entropy.exact_reference import L, Reference, symbols_of
from tests.entropy.test_exact import KINDS, WIDE

Model = Callable[..., object]

OWN = {
    "narrow context": {"context_channels": 20},
    "rates": {"rates": [0.002, 0.01, 0.05]},
    "4x4 windows": {"windows": [2, 4, 4], "heads": 8, "expansion": 2, "partial_ratio": 1},
}
"""What the shared variants do not have."""


@pytest.mark.parametrize(
    ("kind", "extreme"),
    [*((kind, False) for kind in KINDS | OWN), ("base", True), ("deep", True)],
)
@pytest.mark.parametrize(
    "arithmetic", [ORIGINAL, Arithmetic(2), Arithmetic(2, WIDE)], ids=["1", "2", "2-wide"]
)
def test_the_walk_gives_the_reference_integers(
    arithmetic: Arithmetic,
    kind: str,
    extreme: bool,
    make_model: Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "model.safetensors"
    make_model(
        path,
        **{"latent_channels": 16, "hyper_channels": 4, "widths": [4, 4, 8]} | (KINDS | OWN)[kind],
    )
    with safe_open(path, "np") as stored:
        names = [name for name in stored.keys() if not name.startswith("coding.")]  # noqa: SIM118
        parameters = {name: stored.get_tensor(name) for name in names}
    if extreme:  # activations that must be clamped
        parameters["h_s.1.0.weight"] *= 100
    config = load_numpy(path).info.config
    network = Network(config, Parameters(parameters, arithmetic))
    z_symbols = symbols_of(99, (4, 4, 4), extreme)
    expected: list[tuple[np.ndarray, np.ndarray]] = []

    def reference_code(step: int, sigma: np.ndarray, mu: np.ndarray) -> np.ndarray:
        expected.append((sigma, mu))
        return symbols_of(step, sigma.shape, extreme)

    wide = None if arithmetic.version == 1 else arithmetic.wide
    reference = Reference(parameters, config, wide)
    result = reference.walk(z_symbols, reference_code)
    if extreme:
        assert max(np.abs(o).max() for outputs in reference.seen.values() for o in outputs) == L
    for elements in (windows.ELEMENTS, 1):  # one row at a time at the least
        monkeypatch.setattr(windows, "ELEMENTS", elements)
        taken: list[tuple[np.ndarray, np.ndarray]] = []

        def code(step: int, scale: np.ndarray, mean: np.ndarray, taken=taken) -> np.ndarray:
            taken.append((scale.transpose(2, 0, 1), mean.transpose(2, 0, 1)))
            shape = (scale.shape[2], *scale.shape[:2])
            return symbols_of(step, shape, extreme).transpose(1, 2, 0)

        y_hat = network.walk(z_symbols.transpose(1, 2, 0), code).transpose(2, 0, 1)
        assert len(taken) == len(expected)
        for ours, theirs in zip(taken, expected, strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
        assert np.array_equal(1024 * y_hat.astype(np.float64), result.astype(np.float32))


def test_the_table_is_the_number_of_boundaries_below_the_scale(models: Path) -> None:
    from hpcm_scale.codec.engines.numpy_engine import NumpyEngine, _NumpyCoding

    engine = NumpyEngine(load_numpy(models / "tiny.safetensors"))
    boundaries = [Fraction(float(b)) for b in engine.tables.boundaries]
    near = np.unique([int(b * 1024) + d for b in boundaries for d in (-1, 0, 1, 2)])
    scale = near.astype(np.float32).reshape(1, -1, 1)
    table = _NumpyCoding(scale, scale, engine._boundaries).table.ravel()
    assert table.tolist() == [sum(b < Fraction(int(v), 1024) for b in boundaries) for v in near]


@pytest.mark.parametrize("outer_kernel", [2, 4])
def test_transforms_are_torch_s(
    outer_kernel: int, make_model: Model, make_photo: Callable[..., np.ndarray], tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    depths = {"analysis_depths": [1, 2, 1, 1], "synthesis_depths": [1, 2, 1, 1]}
    make_model(path, outer_kernel=outer_kernel, partial_ratio=2, **depths)
    ours, theirs = load_numpy(path).network, load_model(path).network
    x = make_photo(256, 192)[..., :3].astype(np.float32) / 255
    y = ours.g_a(x)
    with torch.inference_mode():
        expected = theirs.g_a(torch.from_numpy(x).permute(2, 0, 1)[None])
        pairs = [(y, expected)]
        pairs.append((ours.h_a(y), theirs.h_a(expected)))
        pairs.append((ours.g_s(y), theirs.g_s(expected)))
    for a, b in pairs:
        b = b[0].permute(1, 2, 0).numpy()
        assert a.shape == b.shape
        assert np.abs(a - b).max() < 1e-5 * max(1, np.abs(b).max())


@pytest.mark.parametrize("name", ["2-3-6", "4-3-3", "2-3-12"])
def test_moves_are_torch_s(name: str) -> None:
    schedule = schedule_named(name)
    ours, theirs = StepGrids(schedule), torch_grids.StepGrids(schedule)
    y = np.random.default_rng(0).normal(size=(16, 24, 32)).astype(np.float32)
    tensor = torch.from_numpy(y).permute(2, 0, 1)[None]
    parts = ours.split(y)
    assert np.array_equal(ours.join(parts), y)
    for part, expected in zip(parts, theirs.split(tensor), strict=True):
        assert np.array_equal(part.transpose(2, 0, 1), expected[0])
    assert np.array_equal(
        ours.moves.misplace(y).transpose(2, 0, 1), theirs.moves.misplace(tensor)[0]
    )


def test_gains_are_torch_s(make_model: Model, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    make_model(path, rates=[0.002, 0.01, 0.05])
    ours, theirs = load_numpy(path).network, load_model(path).network
    for place in (0.0, 0.25, 1.0, 1.75, 2.0):
        expected = theirs.gains_at(torch.tensor([place]))
        assert expected is not None
        assert ours.gain(place) == pytest.approx(expected.numpy().ravel(), rel=1e-6)


def test_a_product_is_torch_s() -> None:
    rng = np.random.default_rng(0)
    weight, bias = (rng.normal(size=shape).astype(np.float32) for shape in ((9, 50), (9,)))
    rows = rng.integers(-L, L + 1, (7, 50)).astype(np.float32)
    ours = Product(weight, bias, "layer")
    theirs = TorchProduct(torch.from_numpy(weight), torch.from_numpy(bias), "layer")
    expected = theirs.multiply(torch.from_numpy(rows), theirs.operand())
    assert np.array_equal(ours.multiply(rows, ours.operand()), expected)


@pytest.mark.parametrize("name", models_in(BUNDLED))
def test_every_bundled_model_loads(name: str) -> None:
    path = models_in(BUNDLED)[name]
    ours, theirs = load_numpy(path), load_model(path)
    assert ours.info == theirs.info
    assert ours.network.image_multiple == theirs.network.image_multiple
    reaches = theirs.network.g_a.reach, theirs.network.g_s.reach
    assert ours.network.reaches == reaches


def _changed(source: Path, path: Path, change: Callable[[dict, dict], None]) -> Path:
    with safe_open(source, "np") as stored:
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        metadata = stored.metadata()
    config = json.loads(metadata["config"])
    change(tensors, config)
    save_file(tensors, path, metadata | {"config": json.dumps(config)})
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t, c: t.pop("merges.0.bias"), "merges.0.bias is missing"),
        (lambda t, c: t.update(extra=np.zeros(1, np.float32)), r"1 unknown \['extra'\]"),
        (lambda t, c: c.update(hyper_width=10**9), "has shape"),
        (lambda t, c: c.update(analysis_depths=[10**9, 1, 1, 1]), r"g_a\.0\.\d+\S+ is missing|has"),
        (lambda t, c: c.update(heads=8), "is damaged"),
        (lambda t, c: t["g_s.0.0.bias"].fill(np.nan), "not finite"),
        (lambda t, c: t["steps.3.scale"].fill(2.0**40), "diverged"),
        (lambda t, c: t["merges.1.weight"].fill(2.0**90), "diverged"),
        (lambda t, c: t["merges.1.weight"].fill(0.5), "is damaged"),
        (lambda t, c: c.update(schedule="4-3-12"), "missing|holds no network"),
        (lambda t, c: c.update(architecture="dcvc-dc-intra"), "needs torch"),
    ],
)
def test_a_model_that_is_not_sound_is_refused(
    change: Callable[[dict, dict], None], words: str, models: Path, tmp_path: Path
) -> None:
    path = _changed(models / "tiny.safetensors", tmp_path / "m.safetensors", change)
    with pytest.raises(CheckpointError, match=words) as refused:
        load_numpy(path)
    assert "\n" not in str(refused.value)
    assert str(path) in str(refused.value)
