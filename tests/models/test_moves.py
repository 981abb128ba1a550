"""Operations with a derivative of their own against plain ones, values and gradients."""

import pytest
import torch
from torch import Tensor

from hpcm_scale.models import grids
from hpcm_scale.models.blocks.residual import PartialConv
from hpcm_scale.models.context import WindowFusion
from hpcm_scale.models.density import ste_quantise, ste_round
from hpcm_scale.models.schedule import schedule_named

SCHEDULE = schedule_named("2-3-6")
SCALE = SCHEDULE.scales[2]


def latents(channels: int, side: int, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    x = torch.randn(2, channels, side, side, dtype=torch.float64)
    return x.contiguous(memory_format=torch.channels_last).requires_grad_()


def gradients(out: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    torch.manual_seed(9)
    weights = torch.randn(out.shape, dtype=out.dtype)  # whatever the memory layout
    return torch.autograd.grad(out, inputs, weights, retain_graph=True)


def agree(one: Tensor, other: Tensor, *inputs: Tensor) -> None:
    assert torch.allclose(one, other, rtol=1e-12)
    pairs = zip(gradients(one, *inputs), gradients(other, *inputs), strict=True)
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in pairs)


def test_putting_is_adding_what_was_placed():
    for k, table in enumerate(SCALE.steps[1:], 1):
        before = latents(16, 4)
        into = grids.place(
            grids.take(before, SCALE.steps[k - 1], SCALE.groups), SCALE.steps[k - 1], SCALE.groups
        )
        x = latents(2 * len(table), 4, seed=k)
        plain = into + grids.place(x, table, SCALE.groups)
        agree(grids.put(x, into, table, SCALE.groups), plain, x, before)


def test_grids_within_grids_are_strided_slices():
    large, small = latents(2 * 8, 4), latents(2 * 8, 2)
    kept = SCHEDULE.scales[1].kept
    # (B, parts, groups, C, H, W)
    wide = large.view(2, 2, len(kept), -1, 4, 4)
    parts = [wide[:, :, g, :, r::2, c::2] for g, (r, c) in enumerate(kept)]
    agree(grids.extract(large, kept, 2), torch.stack(parts, 2).flatten(1, 3), large)
    both = wide.clone()
    for g, (r, c) in enumerate(kept):
        both[:, :, g, :, r::2, c::2] = small.view(2, 2, len(kept), -1, 2, 2)[:, :, g]
    agree(grids.insert(small, large, kept, 2), both.flatten(1, 3), small, large)


def test_all_steps_at_once_are_the_steps_one_by_one():
    y = latents(16, 8)
    steps = grids.StepGrids(SCHEDULE)
    pyramid = steps.pyramid(y)
    for part, (s, table) in zip(steps.split(y), SCHEDULE.steps, strict=True):
        agree(part, grids.take(pyramid[s], table, SCHEDULE.scales[s].groups), y)


def test_a_mean_taken_off_and_put_back_has_no_gradient():
    x, mean = latents(4, 4), latents(4, 4, seed=1)
    plain = ste_round(x - mean) + mean
    agree(ste_quantise(x, mean), plain, x)
    (of_mean,) = gradients(plain, mean)
    assert of_mean.abs().max() < 1e-12


def test_the_partial_convolution_leaves_the_other_channels():
    x, conv = latents(6, 5), PartialConv(2).double()
    plain = torch.cat(
        [torch.nn.functional.conv2d(x[:, :2], conv.weight, conv.bias, padding=1), x[:, 2:]], 1
    )
    agree(conv(x), plain, x, *conv.parameters())


@pytest.mark.parametrize("side", [2, 6])
def test_fusion_is_attention_in_windows(side):
    fusion = WindowFusion(8, heads=2, window=2).double()
    psi, context = latents(8, side), latents(8, side, seed=1)

    def windows(x: Tensor) -> Tensor:
        """(B, windows, heads, 4, 4): channels of a head, and positions of a window."""
        cut = x.unfold(2, 2, 2).unfold(3, 2, 2)  # (B, C, rows, columns, 2, 2)
        cut = cut.permute(0, 2, 3, 1, 4, 5).reshape(2, -1, 2, 4, 4)
        return cut.transpose(-1, -2)

    q, k, v = (
        windows(fusion.query(psi)),
        windows(fusion.key(context)),
        windows(fusion.value(context)),
    )
    found = ((q @ k.transpose(-1, -2)) / 2).softmax(-1) @ v
    n = side // 2
    found = found.transpose(-1, -2).reshape(2, n, n, 8, 2, 2)
    found = found.permute(0, 3, 1, 4, 2, 5).reshape(2, 8, side, side)
    agree(fusion(psi, context), found + fusion.out(psi), psi, context, *fusion.parameters())
