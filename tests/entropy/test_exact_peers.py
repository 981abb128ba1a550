"""The peers' exact entropy paths against an int64 one written from EXACT.md, and their bounds."""

import numpy as np
import pytest
import torch

from hpcm_scale.entropy.exact.arithmetic import ORIGINAL, Arithmetic
from hpcm_scale.entropy.exact.parameters import ExactParameters
from hpcm_scale.entropy.parameters import StepCoding
from hpcm_scale.entropy.table_building import build_tables
from hpcm_scale.models.codec_network import CodecNetwork
from tests.entropy.exact_reference import L, over_power
from tests.entropy.peer_blocks import Blocks
from tests.entropy.peer_flic import Flic, walk_flic
from tests.entropy.peer_models import CONFIGS, GRID, network, symbols
from tests.entropy.peer_walks import WALKS
from tests.entropy.test_exact import each_kernel

WIDE = frozenset({"mean_nets.1.0", "h_s.scale.0.1.layers.0.mlp.depthwise", "h_s.mean.0.0"})


def below(boundaries: np.ndarray, values: np.ndarray) -> np.ndarray:
    """How many boundaries are below each of the values, which are over 1024."""
    return ((1024 * boundaries.astype(np.float64)) < values[..., None]).sum(-1)


def with_large_hyper_outputs(made: CodecNetwork) -> CodecNetwork:
    """Activations that must be clamped."""
    for name, parameter in made.named_parameters():
        if name.startswith("h_s") and parameter.dim() == 4:
            parameter.mul_(30)
    return made


@pytest.mark.parametrize("extreme", [False, True])
@pytest.mark.parametrize("arithmetic", [ORIGINAL, Arithmetic(2, WIDE)], ids=["1", "2"])
@pytest.mark.parametrize("variant", CONFIGS)
def test_every_table_and_mean_is_the_reference_s(
    variant: str, arithmetic: Arithmetic, extreme: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = network(variant)
    if extreme:
        with_large_hyper_outputs(made)
    tables = build_tables(made)
    z_symbols = symbols(variant, (made.config.hyper_channels, *GRID), extreme)
    expected = []

    def reference_code(step: int, scale: np.ndarray, mean: np.ndarray) -> np.ndarray:
        index = below(tables.boundaries, scale)
        if tables.offsets is not None:
            apart = np.abs(mean - 1024 * over_power(mean, 10))
            index = index * (len(tables.offsets) + 1) + below(tables.offsets, apart)
        expected.append((index, mean))
        return symbols(f"{variant} {step}", scale.shape, extreme)

    parameters = {name: p.numpy() for name, p in made.named_parameters()}
    blocks, walk = (Flic, walk_flic) if variant == "flic" else (Blocks, WALKS[variant])
    layers = blocks(parameters, None if arithmetic.version == 1 else arithmetic.wide)
    result = walk(layers, made.config, z_symbols, reference_code)
    assert (layers.largest == L) == extreme

    for _ in each_kernel(monkeypatch):
        taken = []

        def code(step: int, coding: StepCoding, taken=taken) -> torch.Tensor:
            taken.append((coding.table[0].numpy(), 1024 * coding.mean[0].double().numpy()))
            shape = tuple(coding.table.shape[1:])
            return torch.from_numpy(symbols(f"{variant} {step}", shape, extreme))[None]

        path = ExactParameters(made, tables, arithmetic)
        with torch.inference_mode():
            y_hat = path.walk(torch.from_numpy(z_symbols)[None], code)[0].double().numpy()
        assert len(taken) == len(expected) > 4
        for step, ((table, mean), (index, mu)) in enumerate(zip(taken, expected, strict=True)):
            assert np.array_equal(mean, mu), step
            assert np.array_equal(table, index)
        # ŷ leaves the path in single precision.
        assert np.array_equal(y_hat, (result / 1024).transpose(2, 0, 1).astype(np.float32))
