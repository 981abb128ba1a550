"""The exact entropy path against an independent int64 implementation, and its bounds."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hpcm_scale.codec.codec import Codec
from hpcm_scale.entropy.exact import narrow as narrow_module
from hpcm_scale.entropy.exact import product as product_module
from hpcm_scale.entropy.exact.arithmetic import ORIGINAL, Arithmetic
from hpcm_scale.entropy.exact.integer_weights import Addend, IntegerWeights
from hpcm_scale.entropy.exact.narrow import NarrowProduct
from hpcm_scale.entropy.exact.neighbourhoods import neighbours
from hpcm_scale.entropy.exact.parameters import ExactParameters, exact_network
from hpcm_scale.entropy.exact.product import Product
from hpcm_scale.entropy.exact.softmax import powers_of_two
from hpcm_scale.entropy.parameters import FloatParameters, StepCoding
from hpcm_scale.entropy.table_building import build_tables
from hpcm_scale.errors import CheckpointError
from hpcm_scale.models.zoo import build, model_config
from hpcm_scale.weights.model_file import load_model, save_model
from tests.entropy.exact_reference import L, Reference, symbols_of
from tests.entropy.layouts import strided

Model = Callable[..., object]

KINDS = {
    "base": {},
    "official alignment": {"hyper_alignment": "official"},
    "psi": {"fusion": "psi"},
    "no fusion": {"fusion": "none", "schedule": "4-3-3"},
    "no hierarchy": {"hierarchical": False, "windows": [4, 4, 4], "schedule": "2-3-3"},
    "deep": {
        "adaptor_depths": [1, 1, 2],
        "shared_s12": {"before": 1, "after": 1, "out": 1},
        "shared_s3": {"before": 1, "after": 1, "out": 2},
        "partial_ratio": 2,
        "schedule": "2-3-12",
    },
}


WIDE = frozenset(
    {
        "h_s.0.0",
        "shared_s3.before.0.depthwise",
        "shared_s3.before.0.pair.expand",
        "shared_s12.after.0.pair.project",
        "steps.3.adaptor",
        "fusions.1.key",
        "fusions.2.out",
    }
)
"""Layers of arithmetic 2 with weights of 14 bits among others of a byte."""


def each_kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Have products run by each kernel in turn; that of bytes only where it is exact.

    Depthwise convolutions run in integers beside bytes, else in floats where those hold the sums.
    """
    multiplies_bytes = product_module.multiplies_bytes(torch.device("cpu"))
    monkeypatch.setattr(product_module, "LEAST_CHANNELS", 1)
    for name in ("float64", "bytes")[: 1 + multiplies_bytes]:
        for module in (product_module, narrow_module):
            monkeypatch.setattr(module, "multiplies_bytes", lambda _, n=name: n == "bytes")
        if name == "bytes":
            monkeypatch.setattr(narrow_module, "FLOAT_SUM", 1)
        yield name


def _recorded(path: ExactParameters) -> dict[str, list[np.ndarray]]:
    """The outputs (H, W, C) of every exact layer from now on, by name."""
    seen = defaultdict(list)
    for name, module in path._network.named_modules():
        if type(module).__module__.startswith("hpcm_scale.entropy.exact"):
            module.register_forward_hook(
                lambda _, __, output, name=name: seen[name].append(
                    output[0].permute(1, 2, 0).numpy().astype(np.int64)
                )
            )
    return seen


@pytest.mark.parametrize(
    ("kind", "extreme"),
    [
        *((kind, False) for kind in KINDS if kind != "no hierarchy"),
        ("base", True),
        ("no hierarchy", True),
    ],
)
@pytest.mark.parametrize(
    "arithmetic", [ORIGINAL, Arithmetic(2), Arithmetic(2, WIDE)], ids=["1", "2", "2-wide"]
)
def test_every_layer_gives_the_reference_integers(
    arithmetic: Arithmetic,
    kind: str,
    extreme: bool,
    make_model: Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fields = {"latent_channels": 16, "hyper_channels": 4, "widths": [4, 4, 8]} | KINDS[kind]
    make_model(tmp_path / "model.safetensors", **fields)
    model = load_model(tmp_path / "model.safetensors")
    if extreme:  # activations that must be clamped
        up = model.network.h_s[1][0]
        up.weight = torch.nn.Parameter(100 * up.weight, requires_grad=False)
    z_symbols = symbols_of(99, (4, 4, 4), extreme)

    expected = []

    def reference_code(step: int, sigma: np.ndarray, mu: np.ndarray) -> np.ndarray:
        # Of the boundaries as they are, in exact numbers.
        boundaries = [Fraction(float(b)) for b in model.tables.boundaries]
        values, inverse = np.unique(sigma, return_inverse=True)
        below = [sum(b < Fraction(int(v), 1024) for b in boundaries) for v in values]
        expected.append((np.array(below)[inverse].reshape(sigma.shape), mu))
        return symbols_of(step, sigma.shape, extreme)

    parameters = {name: p.numpy() for name, p in model.network.named_parameters()}
    wide = None if arithmetic.version == 1 else arithmetic.wide
    reference = Reference(parameters, model.info.config, wide)
    result = reference.walk(z_symbols, reference_code)
    assert sum(map(len, reference.seen.values())) > 30
    if extreme:
        assert max(np.abs(o).max() for outputs in reference.seen.values() for o in outputs) == L

    for _ in each_kernel(monkeypatch):
        taken = []

        def code(step: int, coding: StepCoding, taken=taken) -> Tensor:
            index, mean, _ = coding
            taken.append((index[0].numpy(), 1024 * mean[0].double().numpy()))
            return torch.from_numpy(symbols_of(step, tuple(index.shape[1:]), extreme))[None]

        path = ExactParameters(model.network, model.tables, arithmetic)
        seen = _recorded(path)
        with torch.inference_mode():
            y_hat = path.walk(torch.from_numpy(z_symbols)[None], code)[0].double().numpy()
        assert reference.seen.keys() <= seen.keys()
        for name, outputs in reference.seen.items():
            assert len(outputs) == len(seen[name]), name
            for ours, theirs in zip(seen[name], outputs, strict=True):
                assert np.array_equal(ours, theirs), name
        assert len(taken) == len(model.network.partition.schedule.steps)
        for (index, mean), (below, mu) in zip(taken, expected, strict=True):
            assert np.array_equal(index, below)
            assert np.array_equal(mean, mu)
        assert np.array_equal(1024 * y_hat, result.astype(np.float32))  # as g_s takes it


def test_the_table_of_powers_is_the_nearest_integers() -> None:
    powers = [int(power) for power in powers_of_two()]
    assert len(powers) == 25 * 1024 + 1
    for d in range(0, 25 * 1024, 7):
        # |power − 2^(24 − d/1024)| ≤ ½ by the 1024-th powers, and twice rounded beyond an octave.
        slack = Fraction(1, 2) if d < 1024 else 1
        low, high = powers[d] - slack, powers[d] + slack
        target = 2 ** (24 * 1024 - d)
        assert max(low, 0) ** 1024 <= target <= high**1024


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_no_accepted_layer_leaves_its_bound_on_any_input(data: st.DataObject) -> None:
    """Weights and inputs that push every sum as far as it can go: both kernels stay exact."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    rows, k, outputs = (data.draw(st.integers(1, most)) for most in (5, 70, 9))
    size = 2.0 ** data.draw(st.floats(-40, 16))
    spread = data.draw(st.sampled_from([0.0, 1.0, 10.0]))
    weight = rng.choice([-1, 1], (outputs, k)) * size * 2 ** -rng.uniform(0, spread, (outputs, k))
    weight[rng.random(outputs) < 0.1] = 0
    weight = weight.astype(np.float32)
    bias = (rng.normal(0, 1, outputs) * 2.0 ** data.draw(st.floats(-30, 45))).astype(np.float32)
    sloped = data.draw(st.booleans())
    addend = data.draw(st.sampled_from([Addend(0), Addend(L), Addend(2 * L, 15)]))
    try:
        integers = IntegerWeights(weight, bias, "layer", addend, sloped)
    except CheckpointError:
        # Far from what a trained layer has.
        assert np.abs(weight).max() >= 32 or np.abs(bias).max() > 2**13
        return
    # Quantised as finely as promised.
    assert np.abs(integers.weight).max() <= 2**13
    largest = np.abs(integers.weight).max(axis=1)
    assert ((largest >= 2**12) | (integers.shift == 24)).all()

    # Every input at its limit; in the first row with the sign that makes all terms add up.
    a = rng.choice(
        [-L, -L + 1, -32768, -32640, -32639, -128, 0, 127, 128, 32639, 32640, 40000, L - 1, L],
        (rows, k),
    )
    a[0] = np.where(integers.weight[0] < 0, -L, L)
    exact_weight = [[int(w) for w in row] for row in integers.weight]
    expected, slope = np.empty((rows, outputs), object), 41 if sloped else 1
    for i in range(rows):
        for o in range(outputs):
            terms = [w * int(x) for w, x in zip(exact_weight[o], a[i], strict=True)]
            unit = max(int(integers.shift[o]), addend.bits)
            magnitude = sum(map(abs, terms)) + abs(int(integers.bias[o]))
            reach = (magnitude << unit - int(integers.shift[o])) + (addend.largest << unit)
            assert slope * reach < 2**53
            expected[i, o] = Fraction(sum(terms) + int(integers.bias[o])) / 2 ** int(
                integers.shift[o]
            )
    parameters = (torch.from_numpy(p) for p in (weight, bias))
    product = Product(*parameters, "layer", addend, sloped)
    rows_in = torch.from_numpy(a).float()
    for operand in _operands(product):
        out = product.multiply(rows_in, operand)
        assert out.dtype == torch.float64
        assert [Fraction(v) for v in out.flatten().tolist()] == list(expected.flat)


@pytest.mark.parametrize("inputs", [300, 1100])
def test_digits_add_up_at_their_largest(inputs: int) -> None:
    """Also where their products, of a thousand inputs at their limit, need more than 32 bits."""
    weight = torch.full((2, inputs), 8191 / 8192)
    weight[1] = -weight[1]
    product = Product(weight, torch.zeros(2), "layer")
    a = torch.tensor([32639.0, -32639.0])[:, None].repeat(1, inputs)
    expected = a.double() @ torch.round(weight * 8192).double().T / 8192
    for operand in _operands(product):
        assert torch.equal(product.multiply(a, operand), expected)


@pytest.mark.parametrize("largest", [100, 32639, 40000, L])
@pytest.mark.parametrize("kind", [Product, NarrowProduct])
def test_patches_are_multiplied_as_their_rows_are(
    kind: type[Product | NarrowProduct], largest: int
) -> None:
    torch.manual_seed(largest)
    product = kind(torch.randn(5, 9 * 4), torch.randn(5), "layer")
    around = torch.randint(-largest, largest + 1, (6, 7, 4)).float()
    around[2, 3, 1] = largest
    rows = torch.cat(list(neighbours(around)), dim=-1).flatten(0, 1)
    if isinstance(product, Product):
        in_floats, *in_bytes = _operands(product)
    else:
        bytes_too = product_module.multiplies_bytes(torch.device("cpu"))
        in_floats, in_bytes = product._weight.double(), [product._weight] * bytes_too
    expected = product.multiply(rows, in_floats)
    for operand in (in_floats, *in_bytes):
        assert torch.equal(product.multiply_patches(around, 3, operand), expected)


def _operands(product: Product) -> list[Tensor]:
    """The operand of each kernel."""
    _, high, low = product._digits.chunk(3)
    weights = (128.0 * high.double() + low) * product._unit
    in_float64 = torch.cat([weights, product._bias[None]])
    bytes_too = product_module.multiplies_bytes(torch.device("cpu"))
    return [in_float64, *([product._digits] if bytes_too else [])]


@pytest.mark.parametrize(
    ("arithmetic", "parameter", "value"),
    [
        (ORIGINAL, "h_s.0.0.weight", 8192.0),
        (ORIGINAL, "shared_s3.after.0.pair.project_bias", 1e13),
        (ORIGINAL, "steps.2.scale", 1e10),
        (ORIGINAL, "fusions.1.key.bias", -1e12),
        (ORIGINAL, "merges.0.weight", 1e30),
        (None, "merges.0.weight", 1e30),
        (None, "shared_s3.after.0.depthwise.bias", -1e35),
        (None, "steps.2.scale", 1e10),
    ],
)
def test_a_model_that_could_overflow_is_refused(
    arithmetic: Arithmetic | None, parameter: str, value: float, models: Path, tmp_path: Path
) -> None:
    model = load_model(models / "tiny.safetensors")
    state = {name: p.clone() for name, p in model.network.state_dict().items()}
    state[parameter].view(-1)[3] = value
    layer = parameter.rsplit(".", 1)[0].removesuffix(".pair")
    path = tmp_path / "diverged.safetensors"
    with pytest.raises(CheckpointError, match=layer):
        save_model(path, state, model.info.config, lmbda=0.013, arithmetic=arithmetic)
    assert not path.exists()


@pytest.mark.parametrize(
    "variant",
    [
        *("base", "large", "phi", "1b", "dcvc-dc-intra"),
        *("elic", "stf", "weconvene", "dcae", "tcm", "lalic", "mambavc", "mlicpp", "flic"),
    ],
)
def test_variants_walk_alike_in_batches_and_layouts(variant: str) -> None:
    torch.manual_seed(0)
    config = model_config(variant, width=1 / 20 if variant != "1b" else 1 / 40)
    network = build(config).eval().requires_grad_(False)
    tables = build_tables(network)
    path = ExactParameters(network, tables)
    side = network.image_multiple // 64
    z_symbols = torch.randint(-3, 4, (2, config.hyper_channels, side, side), dtype=torch.int32)

    def dense(x: Tensor) -> Tensor:
        return x.contiguous()

    def channels_last(x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last)

    def walked(z: Tensor, laid_out: Callable[[Tensor], Tensor]) -> list[Tensor]:
        seen = []

        def code(step: int, coding: StepCoding) -> Tensor:
            index, mean, _ = coding
            seen.extend([index, mean])
            noise = torch.Generator().manual_seed(step)
            symbols = torch.randint(-9, 10, (1, *index.shape[1:]), generator=noise)
            return laid_out(symbols.expand_as(index).to(torch.int32))

        with torch.inference_mode():
            seen.append(path.walk(laid_out(z), code))
        return seen

    together = walked(z_symbols, channels_last)
    for i, laid_out in enumerate((dense, strided)):
        alone = walked(z_symbols[i : i + 1], laid_out)
        assert all(torch.equal(a, b[i : i + 1]) for a, b in zip(alone, together, strict=True))


def test_scales_and_means_are_the_networks_rounded(models: Path) -> None:
    model = load_model(models / "tiny.safetensors")
    z_symbols = torch.randint(-3, 4, (1, 8, 4, 4), dtype=torch.int32)
    outputs = []
    for path in (FloatParameters, ExactParameters):
        seen = []

        def code(step: int, coding: StepCoding, seen=seen) -> Tensor:
            index, mean, scale = coding
            seen.extend([mean, scale])
            return torch.from_numpy(symbols_of(step, tuple(index.shape), False))

        with torch.inference_mode():
            path(model.network, model.tables).walk(z_symbols, code)
        outputs.append(seen)
    for floating, exact in zip(*outputs, strict=True):
        assert (floating - exact).abs().max() < 0.01 * max(1, float(floating.abs().max()))


def test_an_architecture_without_exact_arithmetic_says_so(tmp_path: Path) -> None:
    network = build(model_config("charm", width=1 / 8))
    path = tmp_path / "charm.safetensors"
    save_model(path, network.state_dict(), network.config, lmbda=0.013)
    image = np.zeros((20, 20, 3), np.uint8)
    with pytest.raises(CheckpointError, match=r"charm.safetensors: .*--fast"):
        Codec.load(path).encode(image)
    fast = Codec.load(path, portable=False)
    assert fast.decode(fast.encode(image)).size == (20, 20)


@pytest.mark.slow
@pytest.mark.long
def test_compiled_layers_give_the_same_integers(models: Path) -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        pytest.skip("no C++ compiler for torch.compile")
    twin = exact_network(load_model(models / "tiny.safetensors").network)
    rng = np.random.default_rng(0)
    for layer, inputs in ((twin.shared_s3.before[0], [48]), (twin.fusions[2], [32, 32])):
        grids = []
        for channels in inputs:
            spread = rng.choice([1e-4, 1e-2, 1], (1, channels, 8, 8))
            values = np.rint(rng.integers(-L, L + 1, spread.shape) * spread)
            grids.append(torch.from_numpy(values.astype(np.float32)))
        with torch.inference_mode():
            assert torch.equal(torch.compile(layer)(*grids), layer(*grids))


def test_the_bound_is_that_of_the_worst_input() -> None:
    """Just inside the bound a layer is taken, and its worst sum is below 2^53; outside, refused."""
    weight = np.full((1, 64), 8191.0, np.float32)  # k = 0, Σ|W|·L = 64·8191·L
    reach = 64 * 8191 * L
    largest = (2**53 - reach) / 1024
    below = np.array([math.floor(largest) * (1 - 2e-7)], np.float32)
    above = np.array([largest * (1 + 2e-7)], np.float32)
    assert IntegerWeights(weight, below, "layer").bias[0] + reach < 2**53
    with pytest.raises(CheckpointError, match=r"layer: its sums could reach 2\^53"):
        IntegerWeights(weight, above, "layer")
