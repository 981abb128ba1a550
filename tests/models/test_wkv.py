"""WKV against its definition, token by token, and where single precision could leave it."""

import pytest
import torch
from torch import Tensor

from hpcm_scale.models.blocks.rwkv import OmniShift
from hpcm_scale.models.blocks.wkv import SEGMENTS, wkv


def weight(t: int, i: int, w: Tensor, b: Tensor, length: int, published: bool) -> Tensor:
    """g(t, i) of every channel, as the module's docstring states it."""
    if not published:
        return b.exp() if i == t else (-w * (abs(t - i) - 1)).exp()
    a = t // length * length
    if i < a or i > t:
        return (-w * abs(t - i)).exp()
    if i == t:
        return b.exp() + (1 - w.exp() if t > a else 0)
    once = (-w * (t - i - 1)).exp()
    return once if i == a else once + (w * (t - i)).exp() - (w * (t - i + 1)).exp()


def by_definition(k: Tensor, u: Tensor, decay: Tensor, boost: Tensor, published: bool) -> Tensor:
    tokens = k.shape[1]
    w, b, length = decay / tokens, boost / tokens, -(-tokens // SEGMENTS)
    p = (k - k.amax(1, keepdim=True)).exp()
    rows = []
    for t in range(tokens):
        g = torch.stack([weight(t, i, w, b, length, published) for i in range(tokens)])
        rows.append((g * p * u).sum(1) / (g * p).sum(1))
    return torch.stack(rows, dim=1)


def drawn(tokens: int, spread: float = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(tokens)
    k, u = torch.randn(2, 2, tokens, 5, dtype=torch.float64)
    return spread * k, u, 3 * torch.randn(5).double(), 8 * torch.randn(5).double()


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("tokens", [1, 4, 31, 32, 33, 64, 65, 100, 200])
def test_wkv_is_its_definition(tokens, published):
    given = drawn(tokens)
    expected = by_definition(*given, published)
    # The published weights may all but cancel in a denominator.
    assert torch.allclose(wkv(*given, published), expected, rtol=1e-9, atol=1e-12)


def test_the_two_readings_differ_at_segment_starts():
    k, u, decay, boost = drawn(100)
    assert (wkv(k, u, decay, boost) - wkv(k, u, decay, boost, published=True)).abs().max() > 1e-3
    k, u, _, boost = drawn(100)  # without decay there are no starts
    still = torch.zeros(5).double()
    assert torch.allclose(wkv(k, u, still, boost), wkv(k, u, still, boost, published=True))


@pytest.mark.parametrize("decay", [-70.0, 20.0, 200.0, 1000.0])
def test_single_precision_holds_far_and_large_keys(decay):
    """Far keys exceed near ones by a hundred; e^100 is beyond single precision."""
    k, u, _, boost = drawn(300)
    k[:, ::8] += 110 * torch.rand(2, 38, 5).double()
    decays = torch.full((5,), decay).double()
    exact = wkv(k, u, decays, boost)
    assert torch.allclose(exact, by_definition(k, u, decays, boost, False), atol=1e-11)
    single = wkv(k.float(), u.float(), decays.float(), boost.float())
    assert (single - exact).abs().max() < 1e-4


@pytest.mark.parametrize("published", [False, True])
def test_gradients_are_those_of_the_definition(published):
    given = drawn(40)
    for x in given:
        x.requires_grad_()
    probe = torch.randn(2, 40, 5, dtype=torch.float64)
    found = torch.autograd.grad((wkv(*given, published) * probe).sum(), given)
    expected = torch.autograd.grad((by_definition(*given, published) * probe).sum(), given)
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-8, atol=1e-10)


def test_half_precision_is_computed_in_single():
    k, u, decay, boost = (x.bfloat16() for x in drawn(500, spread=4))
    mean = wkv(k, u, decay, boost)
    assert mean.dtype == torch.bfloat16
    expected = wkv(k.float(), u.float(), decay.float(), boost.float())
    assert torch.equal(mean, expected.bfloat16())


def test_omni_shift_is_the_sum_of_its_convolutions():
    torch.manual_seed(0)
    shift = OmniShift(6).double()
    v = torch.randn(2, 7, 9, 6, dtype=torch.float64)
    x = v.permute(0, 3, 1, 2)
    kernels = (shift.kernel1, shift.kernel3, shift.kernel5)
    sums = shift.alpha[0] * x
    for alpha, kernel, side in zip(shift.alpha[1:], kernels, (1, 3, 5), strict=True):
        sums = sums + alpha * torch.conv2d(x, kernel, padding=side // 2, groups=6)
    assert torch.allclose(shift(v), sums.permute(0, 2, 3, 1))
