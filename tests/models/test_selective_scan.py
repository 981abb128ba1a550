"""The selective scan: its two forms, its gradients, against the recurrence as it is written."""

import pytest
import torch
from torch import Tensor

from hpcm_scale.models.blocks import selective_scan
from hpcm_scale.models.blocks.selective_scan import SelectiveScan2d, recurrence


def written(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The scan of one direction, place after place, by autograd: u and Δ (T, D), b and c (T, N)."""
    h, out = u.new_zeros(a.shape), []
    for place in range(len(u)):
        decay = (delta[place, :, None] * a).exp()
        h = decay * h + (delta[place] * u[place])[:, None] * b[place]
        out.append(h @ c[place])
    return torch.stack(out)


@pytest.fixture
def inputs() -> list[Tensor]:
    torch.manual_seed(0)
    k, t, b, d, n = 4, 75, 2, 3, 5
    shapes = ((k, t, b, d), (k, t, b, d), (k, d, n), (k, t, b, n), (k, t, b, n))
    u, delta, a, b_l, c_l = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
    values = [u, delta.abs(), -a.abs(), b_l, c_l]
    return [value.requires_grad_() for value in values]


def test_values_and_gradients_are_those_of_the_recurrence(inputs):
    u, delta, a, b, c = inputs
    expected = torch.stack(
        [
            torch.stack(
                [
                    written(u[k, :, i], delta[k, :, i], a[k], b[k, :, i], c[k, :, i])
                    for i in range(u.shape[2])
                ],
                dim=1,
            )
            for k in range(len(u))
        ]
    )
    weights = torch.randn_like(expected)
    found = selective_scan._Scan.apply(*inputs)
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)
    ours = torch.autograd.grad((found * weights).sum(), inputs)
    theirs = torch.autograd.grad((expected * weights).sum(), inputs)
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.allclose(mine, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("count", [1, 2, 31, 32])
def test_doubling_gives_what_the_loop_gives(count, monkeypatch):
    torch.manual_seed(count)
    a = torch.rand(4, count, 2, 3, dtype=torch.float64)
    x, start = torch.randn_like(a), torch.randn(4, 2, 3, dtype=torch.float64)
    loop = recurrence(a, x, start)
    monkeypatch.setattr(selective_scan, "LOOPING", ())
    assert torch.allclose(recurrence(a, x, start), loop, rtol=1e-12, atol=1e-12)


def test_turning_the_map_swaps_the_directions():
    """Half a turn exchanges each scan with the one backwards; transposing, rows with columns."""
    torch.manual_seed(0)
    scan = SelectiveScan2d(4, 8, 3, 2).double()
    v = torch.randn(2, 5, 7, 8, dtype=torch.float64)
    plain = scan._scanned(v)
    for order, turn in (
        ([2, 3, 0, 1], lambda x: x.flip(1, 2)),
        ([1, 0, 3, 2], lambda x: x.transpose(1, 2)),
    ):
        other = SelectiveScan2d(4, 8, 3, 2).double()
        other.load_state_dict(scan.state_dict())
        with torch.no_grad():
            for name in ("x_proj_weight", "dt_projs_weight", "dt_projs_bias"):
                getattr(other, name).copy_(getattr(scan, name)[order])
            for name in ("A_logs", "Ds"):
                rows = getattr(scan, name).unflatten(0, (4, -1))[order].flatten(0, 1)
                getattr(other, name).copy_(rows)
        assert torch.allclose(other._scanned(turn(v)), turn(plain), rtol=1e-12, atol=1e-12)
