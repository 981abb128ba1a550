"""The selective scan of state space models, over maps in four directions, and MambaVC's block.

Source: Gu and Dao, arXiv 2312.00752; over maps as VMamba (arXiv 2401.10166) runs it. Shape letters:
B images, D channels, N states a channel, R the rank of the step sizes, T = H·W positions, K = 4
directions.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpcm_scale.models.density import upcast_half
from hpcm_scale.models.linear import Linear

DIRECTIONS = 4
"""Row by row, column by column, and both backwards."""
CHUNK = 32
"""Places whose states are held at a time."""
STEP_RANGE = (1e-3, 1e-1)
"""Step sizes Δ at first, between which they are drawn evenly in their logarithm."""
LEAST_STEP = 1e-4
LOOPING = ("cpu",)
"""Devices on which a loop over places is the faster form: small operations cost little there."""


def recurrence(a: Tensor, x: Tensor, start: Tensor) -> Tensor:
    """h_i = a_i·h_{i−1} + x_i along dimension 1; a, x (K, c, ...), h before (K, ...) -> (K, c, ...)

    On a CPU a loop over places; elsewhere by doubling, few and large operations: the products of 2,
    4, 8, ... neighbours. a lies in (0, 1], so nothing overflows.
    """
    count = x.shape[1]
    if x.device.type in LOOPING:
        h = torch.empty_like(x)
        torch.addcmul(x[:, 0], a[:, 0], start, out=h[:, 0])
        for i in range(1, count):
            torch.addcmul(x[:, i], a[:, i], h[:, i - 1], out=h[:, i])
        return h
    reach = 1
    while reach < count:
        x = torch.cat([x[:, :reach], x[:, reach:] + a[:, reach:] * x[:, :-reach]], dim=1)
        a = torch.cat([a[:, :reach], a[:, reach:] * a[:, :-reach]], dim=1)
        reach *= 2
    return x + a * start[:, None]


class _Scan(torch.autograd.Function):
    """Σ_n C·h with h_l = exp(Δ_l A)·h_{l−1} + Δ_l·B_l·u_l, a chunk of places at a time.

    u and Δ (K, T, B, D), A (K, D, N), B and C (K, T, B, N) -> (K, T, B, D). Only the states at the
    borders of chunks are kept; the backward pass recomputes those inside.
    """

    @staticmethod
    def forward(ctx: Any, u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        out = torch.empty_like(u)
        state = u.new_zeros(u.shape[0], *u.shape[2:], a.shape[-1])
        starts = []
        for part in _chunks(u):
            starts.append(state)
            h = recurrence(*_factors(u, delta, a, b, part), state)
            out[:, part] = (h * c[:, part, :, None, :]).sum(-1)
            state = h[:, -1].clone()
        ctx.save_for_backward(u, delta, a, b, c, *starts)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        (grad,) = grads
        u, delta, a, b, c, *starts = ctx.saved_tensors
        grad_u, grad_delta, grad_b, grad_c = map(torch.empty_like, (u, delta, b, c))
        grad_a = torch.zeros_like(a)
        later = torch.zeros_like(starts[0])  # a·λ of the place after the chunk
        for part, start in zip(reversed(_chunks(u)), reversed(starts), strict=True):
            decay, x = _factors(u, delta, a, b, part)
            h = recurrence(decay, x, start)
            before = torch.cat([start[:, None], h[:, :-1]], dim=1)
            g = grad[:, part, :, :, None]
            grad_c[:, part] = (g * h).sum(-2)
            # λ_l = C_l·g_l + a_{l+1}·λ_{l+1}: the same recurrence from the end.
            own = g * c[:, part, :, None, :]
            own[:, -1] += later
            ahead = torch.cat([decay[:, 1:], torch.zeros_like(decay[:, :1])], dim=1)
            nothing = torch.zeros_like(start)
            influence = recurrence(ahead.flip(1), own.flip(1), nothing).flip(1)
            later = decay[:, 0] * influence[:, 0]
            step, inputs = delta[:, part, :, :, None], u[:, part, :, :, None]
            through = influence * decay * before
            grad_a += (through * step).sum((1, 2))
            of_inputs = (influence * b[:, part, :, None, :]).sum(-1)
            grad_delta[:, part] = (through * a[:, None, None]).sum(-1) + of_inputs * u[:, part]
            grad_u[:, part] = of_inputs * delta[:, part]
            grad_b[:, part] = (influence * (step * inputs)).sum(-2)
        return grad_u, grad_delta, grad_a, grad_b, grad_c


def _chunks(u: Tensor) -> list[slice]:
    # Where nothing is computed, nothing needs memory.
    size = u.shape[1] if u.device.type == "meta" else CHUNK
    return [slice(start, start + size) for start in range(0, u.shape[1], size)]


def _factors(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, part: slice) -> tuple[Tensor, Tensor]:
    """exp(Δ A) and Δ·B·u of some places, each (K, c, B, D, N)."""
    step = delta[:, part]
    decay = (step[..., None] * a[:, None, None]).exp_()
    return decay, (step * u[:, part])[..., None] * b[:, part, :, None, :]


class SelectiveScan2d(nn.Module):
    """A map through four scans, gated: (B, H, W, C) stays; inside, D channels."""

    def __init__(self, channels: int, inner: int, states: int, rank: int) -> None:
        super().__init__()
        self.rank, self.states = rank, states
        self.in_proj = Linear(channels, 2 * inner, bias=False)
        self.conv2d = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.x_proj_weight = nn.Parameter(torch.empty(DIRECTIONS, rank + 2 * states, inner))
        nn.init.uniform_(self.x_proj_weight, -(inner**-0.5), inner**-0.5)
        self.dt_projs_weight = nn.Parameter(torch.empty(DIRECTIONS, inner, rank))
        nn.init.uniform_(self.dt_projs_weight, -(rank**-0.5), rank**-0.5)
        low, high = map(math.log, STEP_RANGE)
        steps = torch.empty(DIRECTIONS, inner).uniform_(low, high).exp().clamp_min(LEAST_STEP)
        # The inverse of the softplus.
        self.dt_projs_bias = nn.Parameter(steps + (-torch.expm1(-steps)).log())
        rates = torch.arange(1.0, states + 1).log().repeat(DIRECTIONS * inner, 1)
        self.A_logs = nn.Parameter(rates)
        self.Ds = nn.Parameter(torch.ones(DIRECTIONS * inner))
        self.out_norm = nn.LayerNorm(inner)
        self.out_proj = Linear(inner, channels, bias=False)

    def forward(self, t: Tensor) -> Tensor:
        v, gate = self.in_proj(t).chunk(2, dim=-1)
        v = F.silu(self.conv2d(v.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        y = self._scanned(upcast_half(v)).to(v.dtype)
        return self.out_proj(self.out_norm(y) * F.silu(gate))

    def _scanned(self, v: Tensor) -> Tensor:
        """(B, H, W, D) -> the sum of the four scans, in float32 or wider."""
        b, h, w, d = v.shape
        rows = v.permute(1, 2, 0, 3).reshape(h * w, b, d)
        columns = v.permute(2, 1, 0, 3).reshape(h * w, b, d)
        u = torch.stack([rows, columns, rows.flip(0), columns.flip(0)])  # (K, T, B, D)
        flat = u.view(DIRECTIONS, -1, d)
        projected = flat @ upcast_half(self.x_proj_weight).transpose(1, 2)
        projected = projected.view(DIRECTIONS, h * w, b, -1)
        step, b_l, c_l = projected.split((self.rank, self.states, self.states), dim=-1)
        step = step.reshape(DIRECTIONS, -1, self.rank) @ upcast_half(
            self.dt_projs_weight
        ).transpose(1, 2)
        delta = F.softplus(step + upcast_half(self.dt_projs_bias)[:, None]).view_as(u)
        a = -upcast_half(self.A_logs).exp().view(DIRECTIONS, d, -1)
        skip = upcast_half(self.Ds).view(DIRECTIONS, 1, 1, d)
        scanned = _Scan.apply(u, delta, a, b_l.contiguous(), c_l.contiguous())
        out = scanned + skip * u
        by_row = (out[0] + out[2].flip(0)).view(h, w, b, d).permute(2, 0, 1, 3)
        by_column = (out[1] + out[3].flip(0)).view(w, h, b, d).permute(2, 1, 0, 3)
        return by_row + by_column


class StateSpaceBlock(nn.Module):
    """x + scan(LN(x)): (B, C, H, W) stays."""

    def __init__(self, channels: int, inner: int, states: int, rank: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.op = SelectiveScan2d(channels, inner, states, rank)

    def forward(self, x: Tensor) -> Tensor:
        t = x.permute(0, 2, 3, 1)
        return (t + self.op(self.norm(t))).permute(0, 3, 1, 2)
