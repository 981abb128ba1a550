"""Stages and steps through torch.compile against the same network run plainly."""

import pytest
import torch
from torch import Tensor

from hpcm_scale.models.blocks.residual import DWConvRB, PConvRB
from hpcm_scale.models.codec_network import CheckpointEvery, CompiledCall, noise_shapes
from hpcm_scale.models.zoo import build, model_config

SMALL = model_config("base", width=0.025, depth=0.2)
BACKEND = "aot_eager"
"""Traces and differentiates as for a GPU; the code generator is tests/models/test_blocks's."""


def passed(compiled: bool) -> list[Tensor]:
    """Rates, picture and all gradients of a training pass, then what validation gives."""
    torch.manual_seed(0)
    network = build(SMALL)
    if compiled:
        network.compile_stages(graphs=False, backend=BACKEND)
    x = torch.rand(2, 3, 256, 256).contiguous(memory_format=torch.channels_last)
    noise = tuple(torch.rand(shape) - 0.5 for shape in noise_shapes(SMALL, 2, 256, 256))
    output = network(x, noise)
    (output.bits.mean() + (output.x_hat - x).square().sum()).backward()
    with torch.no_grad():
        larger = network(torch.rand(1, 3, 256, 512))
    if compiled:
        assert isinstance(network.run, CompiledCall)
        # Stages of image and hyperprior, steps, fusions; for validation's size no other.
        assert len(network.run._compiled) == 8 + 4 + 10 + 3
    gradients = torch.cat([parameter.grad.flatten() for parameter in network.parameters()])
    return [output.x_hat, output.bits, gradients, larger.x_hat]


@pytest.mark.slow
@pytest.mark.long
def test_a_compiled_pass_is_the_plain_one():
    for compiled, plain in zip(passed(True), passed(False), strict=True):
        assert torch.allclose(compiled, plain, rtol=1e-4, atol=1e-6 * plain.abs().max().item())


def test_compiled_stages_can_be_recomputed():
    torch.manual_seed(0)
    stages = [PConvRB(8, 4, 4), DWConvRB(8)]
    parameters = [p for stage in stages for p in stage.parameters()]
    x = torch.randn(2, 8, 8, 8).contiguous(memory_format=torch.channels_last)
    plain = CompiledCall(graphs=False, backend=BACKEND)
    found = []
    for run in (lambda stage, *x: stage(*x), CheckpointEvery(1, plain)):
        out = x
        for stage in stages:
            out = run(stage, out)
        found.append(torch.autograd.grad(out.square().sum(), parameters))
    assert len(plain._compiled) == 2
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-4)
