"""The papers' nine peers: symbols, rates and pixels of their published programs, and their counts.

$HPCM_SHARED/peers holds for each variant the published names and shapes of its parameters, a rule
that fills them, and what the published program computes with them.
"""

import hashlib
import importlib.util
import json
import math
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from hpcm_scale.models.codec_network import CodecNetwork
from hpcm_scale.models.complexity import complexity_table, count_parameters
from hpcm_scale.models.zoo import build, model_config
from hpcm_scale.weights.peers import PEERS
from hpcm_scale.weights.published import to_ours

SHARED = Path(os.environ.get("HPCM_SHARED", Path(__file__).parents[3] / "shared"))

VARIANTS = sorted(variant for layout in PEERS.values() for variant in layout.variants)


def read(kind: str, variant: str) -> dict[str, Any]:
    """$HPCM_SHARED/peers/<kind>_<variant>.json; skips the test where it is not."""
    path = SHARED / "peers" / f"{kind}_{variant}.json"
    if not path.is_file():
        pytest.skip(f"needs {path}")
    return json.loads(path.read_text())


def published_state(variant: str, salt: str) -> dict[str, Tensor]:
    """The rule's weights under their published names."""
    path = SHARED / "peers" / f"rule_{model_config(variant).architecture}.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    rule = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rule)
    arrays = rule.state_dict(SHARED / "peers" / f"layout_{variant}.json", salt)
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def loaded(variant: str, salt: str, overrides: dict[str, Any] | None = None) -> CodecNetwork:
    """Our network with the rule's weights, in float64."""
    layout = PEERS[model_config(variant).architecture]
    config = model_config(variant, overrides={**layout.overrides, **(overrides or {})})
    with torch.device("meta"):
        network = build(config)
    network.load_state_dict(to_ours(published_state(variant, salt), config), assign=True)
    return network.to(memory_format=torch.channels_last).eval()  # pyright: ignore[reportCallIssue]


def crop(golden: dict[str, Any], place: list[int]) -> Tensor:
    """(1, 3, h, w) float64 in [0, 1]: the golden's image at `place` (x, y, width, height)."""
    left, top, width, height = place
    image = Image.open(SHARED / "data" / "kodak" / golden["image"]).convert("RGB")
    pixels = np.asarray(image)[top : top + height, left : left + width]
    x = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].double() / 255
    return x.contiguous(memory_format=torch.channels_last)


class Step:
    """What one coding step gave."""

    def __init__(self, symbols: Tensor, scale: Tensor, mean: Tensor, bits: Tensor) -> None:
        self.symbols, self.scale, self.mean, self.bits = symbols, scale, mean, bits


def coded(network: CodecNetwork, x: Tensor) -> tuple[Tensor, Tensor, list[Step]]:
    """y, the symbols of z, and every coding step of an encoder."""
    with torch.no_grad():
        y = network.g_a(x)
        centre = network.z_prior.centre
        z_symbols = (network.h_a(y) - centre).round()
        targets, steps = network.partition.split(y), []

        def code(step: int, scale: Tensor, mean: Tensor) -> Tensor:
            shift = mean if network.centred else torch.zeros_like(mean)
            symbols = (targets[step] - shift).round()
            rated = symbols if network.centred else symbols - mean
            steps.append(Step(symbols, scale, mean, network.density.bits(rated, scale)))
            return symbols + shift

        network.code_steps(network.h_s(z_symbols + centre), code)
    return y, z_symbols, steps


def sha256(symbols: Tensor) -> str:
    array = symbols.to(torch.int32).contiguous().numpy().astype("<i4")
    return hashlib.sha256(array.tobytes()).hexdigest()


def check_symbols(symbols: Tensor, expected: dict[str, Any]) -> None:
    assert list(symbols.shape) == expected["shape"]
    assert symbols.abs().sum().item() == expected["abs_sum"]
    assert symbols.count_nonzero().item() == expected["nonzero"]
    assert sha256(symbols) == expected["symbols_sha256"]


def check_step(step: Step, expected: dict[str, Any], rel: float = 1e-9) -> None:
    check_symbols(step.symbols, expected)
    for name, value in (
        ("bits", step.bits.sum()),
        ("mean_mean", step.mean.mean()),
        ("mean_abs_mean", step.mean.abs().mean()),
        ("scale_mean", step.scale.mean()),
        ("scale_min", step.scale.min()),
        ("scale_max", step.scale.max()),
    ):
        if name in expected:
            assert value.item() == pytest.approx(expected[name], rel=rel, abs=1e-9), name


def figures(golden: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(overrides, figures) of a golden: of one network, or of each reading of it."""
    if golden["variant"] == "weconvene":  # computed with exact filters
        return [({"wavelet": "exact"}, golden)]
    readings = [name for name in golden.get("wkv", {}) if name in golden]
    return [({"wkv": name}, golden[name]) for name in readings] or [({}, golden)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_golden_symbols_rates_and_pixels(variant):
    golden = read("golden", variant)
    x = crop(golden, golden["crop_x_y_w_h"])
    for overrides, expected in figures(golden):
        network = loaded(variant, golden["salt"], overrides)
        y, z_symbols, steps = coded(network, x)
        # Of WeConvene the wavelet bands are what is coded.
        names = ("wavelet_abs_mean", "latent_abs_mean", "y_abs_mean")
        latents = next(expected[name] for name in names if name in expected)
        assert y.abs().mean().item() == pytest.approx(latents, rel=1e-9)
        check_symbols(z_symbols, expected["z"])
        assert len(steps) == len(expected["y_steps"])
        for step, figure in zip(steps, expected["y_steps"], strict=True):
            check_step(step, figure)

        with torch.no_grad():
            output = network(x)
        rates, bits = expected.get("bits", {}), output.bits[0]
        assert bits[:-1].sum().item() == pytest.approx(
            rates.get("y", expected.get("y_bits")), rel=1e-9
        )
        assert bits[-1].item() == pytest.approx(rates.get("z", expected.get("z_bits")), rel=1e-9)
        x_hat = output.x_hat
        assert x_hat.shape == x.shape
        for name, value in (
            ("x_hat_mean", x_hat.mean()),
            ("x_hat_abs_mean", x_hat.abs().mean()),
            ("x_hat_std", x_hat.std()),
        ):
            if name in expected:
                assert value.item() == pytest.approx(expected[name], rel=1e-9, abs=1e-9), name
        probes = expected.get("x_hat_probes_channel_row_column_value") or [
            (*map(int, place.split(",")), value) for place, value in expected["x_hat_probe"].items()
        ]
        for c, row, column, value in probes:
            assert x_hat[0, c, row, column].item() == pytest.approx(value, rel=1e-9, abs=1e-9)


class Held(nn.Module):
    """A transform that gives what it was told to, or its input."""

    def __init__(self, value: Tensor | None = None) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor, run: object = None) -> Tensor:
        return x if self.value is None else self.value


@pytest.mark.parametrize("variant", VARIANTS)
def test_golden_training_pass(variant):
    golden = read("golden", variant)
    expected = golden.get("training")
    if expected is None:
        pytest.skip(f"the golden of {variant} has no training pass")
    x = crop(golden, expected["crop_x_y_w_h"])
    network = loaded(variant, golden["salt"])
    for parameter in network.parameters():
        parameter.requires_grad_()
    with torch.no_grad():
        y = network.g_a(x)
        z = network.h_a(y)

    def noise(name: str, like: Tensor) -> Tensor:
        seed = zlib.crc32(f"{golden['salt']}:noise.{name}".encode())
        draw = np.random.Generator(np.random.PCG64(seed)).uniform(-0.5, 0.5, like.shape)
        return torch.from_numpy(draw)

    whole = "loss_lambda" in expected
    if not whole:  # y is held, and the latents take the place of the image
        y.requires_grad_()
        network.g_a, network.g_s = Held(y), Held()
    output = network(x, (noise("y", y), noise("z", z)))
    pixels = x.shape[-1] * x.shape[-2]
    bpp = output.bits[0] / pixels
    assert bpp[:-1].sum().item() == pytest.approx(expected["y_bpp"], rel=1e-9)
    assert bpp[-1].item() == pytest.approx(expected["z_bpp"], rel=1e-9)
    if whole:
        distortion = (output.x_hat - x).square().mean()
        assert distortion.item() == pytest.approx(expected["mse"], rel=1e-9)
        loss = bpp.sum() + expected["loss_lambda"] * 255**2 * distortion
        assert loss.item() == pytest.approx(expected["loss"], rel=1e-9)
    else:
        distortion = output.x_hat.square().mean()
        assert distortion.item() == pytest.approx(expected["y_hat_mean_square"], rel=1e-9)
        loss = bpp.sum() + distortion
    loss.backward()

    names = PEERS[network.config.architecture].names(network.config)
    gradients = {names[n]: p.grad for n, p in network.named_parameters() if p.grad is not None}
    quantiles = gradients.pop("entropy_bottleneck.quantiles", None)
    assert quantiles is None or quantiles.abs().max() == expected["quantiles_gradient_max"] == 0
    for name, norm in expected["gradient_l2"].items():
        gradient = y.grad if name == "y" else gradients[name]
        assert gradient is not None
        assert gradient.norm().item() == pytest.approx(norm, rel=1e-8), name
    total = math.sqrt(sum(g.square().sum().item() for g in gradients.values()))
    of_all = expected.get("gradient_l2_of_all", expected.get("gradient_l2_of_all_parameters"))
    assert total == pytest.approx(of_all, rel=1e-8)
    assert output.auxiliary is not None
    assert output.auxiliary.item() == pytest.approx(expected["quantile_loss"], rel=1e-9)


@pytest.mark.parametrize("variant", VARIANTS)
def test_golden_counts(variant):
    golden = read("golden", variant)
    layout = PEERS[model_config(variant).architecture]
    published = read("layout", variant)["parameters"]
    unused = layout.unused
    dead = sum(
        math.prod(shape)
        for name, shape in published.items()
        if unused is not None and unused.fullmatch(name)
    )
    config = model_config(variant)
    with torch.device("meta"):
        network = build(config)
    counted = count_parameters(network)["total"]
    stored = golden.get("params_without_conv5x5_reparam", golden.get("params"))
    assert counted + dead == golden.get("parameters", stored)
    kmacs = golden["kmacs_per_pixel"]
    measured = next(kmacs[k] for k in ("measured", "total", "as the program runs") if k in kmacs)
    share = complexity_table(config)[-1]
    assert share.parameters == counted + network.published_dead_parameters
    # Of WeConvene the wavelets are counted as convolutions there, 0.03 %; here they are additions.
    tolerance = 4e-4 if variant == "weconvene" else 2e-4
    assert share.kmacs_per_pixel == pytest.approx(measured, rel=tolerance)
