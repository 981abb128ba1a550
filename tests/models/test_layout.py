"""Memory layout and precision that GPUs depend on, as far as a CPU shows them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hpcm_scale.models.blocks import residual
from hpcm_scale.models.blocks.residual import DWConvRB, ResidualPair
from hpcm_scale.models.codec_network import noise_shapes
from hpcm_scale.models.torch_internals import CUDA_MULTIPLE, CUDA_ROWS, padded_int_mm
from hpcm_scale.models.zoo import build, model_config

SMALL = model_config("base", width=0.025)


def by_position(x: Tensor) -> bool:
    """Whether the channels of a position lie side by side, and positions of a row too."""
    _, _, _, w = x.shape
    return x.stride(1) == 1 and (w == 1 or x.stride(2) == w * x.stride(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_channels_stay_innermost_through_every_module(dtype):
    """Forward and backward; a module that loses the layout has its readers copy to restore it."""
    torch.manual_seed(0)
    network = build(SMALL).to(dtype)
    lost: list[str] = []
    seen: set[str] = set()

    def look(name: str, way: str, values: object) -> None:
        for x in values if isinstance(values, tuple) else (values,):
            if isinstance(x, Tensor) and x.dim() == 4:
                seen.add(f"{name} {way}")
                if not by_position(x):
                    lost.append(f"{name} {way}: {tuple(x.shape)} {x.stride()}")

    for name, module in network.named_modules():
        if not name or name == "z_prior":
            continue
        module.register_forward_hook(lambda _m, _i, out, name=name: look(name, "out", out))
        module.register_full_backward_hook(lambda _m, into, _o, name=name: look(name, "back", into))
    x = torch.rand(2, 3, 256, 256).contiguous(memory_format=torch.channels_last)
    noise = tuple(torch.rand(shape) - 0.5 for shape in noise_shapes(SMALL, 2, 256, 256))
    output = network(x.to(dtype), noise)
    (output.bits.sum() + (output.x_hat.float() - x).square().sum()).backward()
    assert len(seen) > 150
    assert not lost


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**31))
def test_bytes_padded_for_a_gpu_have_the_same_products(rows, inner, columns, seed):
    generator = torch.manual_seed(seed)
    a, b = (
        torch.randint(-128, 128, shape, dtype=torch.int8, generator=generator)
        for shape in ((rows, inner), (inner, columns))
    )

    def cuda_like(a: Tensor, b: Tensor) -> Tensor:
        assert len(a) >= CUDA_ROWS
        assert a.shape[1] % CUDA_MULTIPLE == b.shape[1] % CUDA_MULTIPLE == 0
        assert a.is_contiguous()
        assert b.is_contiguous()
        return (a.long() @ b.long()).int()

    assert torch.equal(padded_int_mm(a, b, cuda_like), (a.long() @ b.long()).int())


def test_half_precision_sums_keep_their_small_parts(monkeypatch):
    """bfloat16 adds nothing below 1/256 of a sum: parts added one to another would stop there."""
    torch.manual_seed(0)
    pair = ResidualPair(2, 1).bfloat16()
    fewest, _ = residual.CPU_ROWS
    monkeypatch.setattr(residual, "CPU_ROWS", (fewest, fewest))
    positions = 400 * fewest // 100
    x = torch.ones(1, 2, positions, 100, dtype=torch.bfloat16, requires_grad=True)
    h = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    pair(x, h).float().sum().backward()
    exact = ResidualPair(2, 1).double()
    exact.load_state_dict({k: v.double() for k, v in pair.state_dict().items()})
    y = x.detach().double()
    exact(y, y).sum().backward()
    for half, double in zip(pair.parameters(), exact.parameters(), strict=True):
        assert torch.allclose(half.grad.double(), double.grad, rtol=1 / 64)


def test_a_rate_in_half_precision_is_summed_in_single():
    torch.manual_seed(0)
    block = DWConvRB(8).bfloat16()
    assert block(torch.rand(1, 8, 8, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16
    network = build(SMALL).bfloat16()
    output = network(torch.rand(1, 3, 256, 256, dtype=torch.bfloat16))
    assert output.bits.dtype == torch.float32
