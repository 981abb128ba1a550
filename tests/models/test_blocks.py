"""The fused pair of 1×1 convolutions against the plain operations, values and gradients."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from hpcm_scale.models import linear
from hpcm_scale.models.blocks import resampling, residual


@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 70), st.integers(1, 3), st.data())
def test_the_residual_pair_is_its_definition(batch, height, width, expansion, data):
    seed = data.draw(st.integers(0, 2**31))
    generator = torch.manual_seed(seed)
    pair = residual.ResidualPair(4, expansion).double()
    shape = (batch, 4, height, width)
    x, h = (
        torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_()
        for _ in range(2)
    )
    inputs = (x, h, *pair.parameters())
    hidden = F.leaky_relu(F.conv2d(h, pair.expand_weight, pair.expand_bias), residual.SLOPE)
    expected = x + F.conv2d(hidden, pair.project_weight, pair.project_bias)
    # Fewer rows at a time than positions, and a rest that does not fill them.
    rows, residual.CPU_ROWS = residual.CPU_ROWS, (64, 64)
    try:
        found = pair(x, h)
        weights = torch.randn(shape, dtype=torch.float64, generator=generator)
        gradients = torch.autograd.grad(found, inputs, weights)
        with torch.no_grad():
            assert torch.equal(pair(x, h), found)
    finally:
        residual.CPU_ROWS = rows
    assert torch.allclose(found, expected)
    for one, other in zip(gradients, torch.autograd.grad(expected, inputs, weights), strict=True):
        assert torch.allclose(one, other)


def test_products_see_rows_that_lie_together(monkeypatch):
    """Rows of one channels-first picture are a view without a copy, a matrix that lies by columns;
    for the gradient of such oneDNN falls back to its reference loops."""
    seen = []

    def recorded(grad, x):
        seen.extend((grad, x))
        return grad.t() @ x

    monkeypatch.setattr(linear, "weight_gradient", recorded)
    monkeypatch.setattr(linear, "CONVOLUTION_POSITIONS", 0)
    net = torch.nn.Sequential(
        residual.PConvRB(64, 2, 2),
        residual.DWConvRB(64),
        resampling.Conv1x1(64, 64),
        resampling.Down2x2(64, 8),
    )
    net(torch.randn(1, 64, 16, 16)).square().sum().backward()
    assert len(seen) == 2 * 6
    assert all(matrix.is_contiguous() for matrix in seen)


def test_compiled_transforms_and_context_nets_give_the_same():
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        residual.PConvRB(8, 4, 4), residual.DWConvRB(8), resampling.Down2x2(8, 4)
    )
    x = torch.randn(1, 8, 16, 16).contiguous(memory_format=torch.channels_last)
    expected = net(x)
    compiled = torch.compile(net)
    assert torch.allclose(compiled(x), expected, atol=1e-5)
    gradients = [
        torch.autograd.grad(run(x).square().sum(), list(net.parameters()))
        for run in (net, compiled)
    ]
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("channels", [6, 256])
def test_few_positions_by_convolution_give_what_products_give(channels, monkeypatch):
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        residual.DWConvRB(channels), resampling.Conv1x1(channels, channels + 2)
    )
    x = torch.randn(2, channels, 8, 4).contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    by_convolution = net(x)
    monkeypatch.setattr(linear, "CONVOLUTION_POSITIONS", 0)
    by_products = net(x)
    assert "Convolution" in type(by_convolution.grad_fn).__name__
    assert "Convolution" not in type(by_products.grad_fn).__name__
    assert by_convolution.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(by_convolution, by_products, atol=1e-6)
    weights = torch.randn(by_products.shape)
    found, expected = (
        torch.autograd.grad(out, (x, *net.parameters()), weights)
        for out in (by_convolution, by_products)
    )
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("positions", [4096, 4100])
@pytest.mark.parametrize(("channels", "expansion"), [(8, 4), (16, 4), (48, 1), (64, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pair_s_gradients_are_those_of_exact_numbers(positions, channels, expansion, dtype):
    """On both sides of where oneDNN takes over, and of where convolutions do, against float64."""
    torch.manual_seed(0)
    pair = residual.ResidualPair(channels, expansion).to(dtype)
    shape = (1, channels, positions // 4, 4)
    x, h, weights = (
        torch.randn(shape).to(dtype, memory_format=torch.channels_last) for _ in range(3)
    )
    x.requires_grad_(), h.requires_grad_()
    exact = copy.deepcopy(pair).double()
    ends = [
        torch.autograd.grad(net(*given), (*given, *net.parameters()), like)
        for net, given, like in (
            (pair, (x, h), weights),
            (exact, tuple(t.detach().double().requires_grad_() for t in (x, h)), weights.double()),
        )
    ]
    # A hidden value near 0 may lie on the other side of the bend.
    slack = 5e-3 if dtype == torch.float32 else 2e-2
    for found, expected in zip(*ends, strict=True):
        assert (found.double() - expected).norm() <= slack * expected.norm()


def test_half_precision_compiles_in_one_graph():
    pair = residual.ResidualPair(8, 2).to(torch.bfloat16)
    x = torch.randn(1, 8, 8, 8).to(torch.bfloat16, memory_format=torch.channels_last)
    with torch.no_grad():
        compiled = torch.compile(pair, backend="eager", fullgraph=True)
        assert torch.allclose(compiled(x, x).float(), pair(x, x).float(), atol=0.1)
