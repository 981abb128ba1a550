"""The selective scan of MambaVC in exact arithmetic.

What enters the scan are grid integers and factors from tables. The scan itself is in double
precision, an operation at a time, each rounded once and in the order of the places.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from hpcm_scale.entropy.exact.composite import Composite
from hpcm_scale.entropy.exact.function_tables import (
    FINE_BITS,
    FRACTION_BITS,
    OCTAVE_PARTS,
    POWER_REACH,
    STEP_BITS,
    coarse_powers,
    fine_powers,
    step_rise,
)
from hpcm_scale.entropy.exact.functions import Silu, added, gated, lookup
from hpcm_scale.entropy.exact.grid import GRID_BITS, LIMIT, requantize
from hpcm_scale.entropy.exact.integer_weights import SCALE_BITS, integer_scale
from hpcm_scale.entropy.exact.kernels import Kernels
from hpcm_scale.entropy.exact.softmax import LOG2_E
from hpcm_scale.errors import CheckpointError
from hpcm_scale.models.blocks.selective_scan import (
    CHUNK,
    DIRECTIONS,
    SelectiveScan2d,
    StateSpaceBlock,
)

LARGEST_LOG = 20
"""Largest magnitude of A_logs: decay rates of states lie from e^−20 to e^20."""


class PowersOfTwo(nn.Module):
    """2^−x, x in octaves over 2^16, in double precision: a product of two tables' integers."""

    coarse: Tensor
    fine: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("coarse", torch.tensor(coarse_powers()), persistent=False)
        self.register_buffer("fine", torch.tensor(fine_powers()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Float64 integers, not negative, any shape -> the same shape."""
        x = x.clamp(max=POWER_REACH)
        high = (x * (1 / OCTAVE_PARTS)).floor_()
        low = x.sub_(high, alpha=OCTAVE_PARTS)
        return (
            lookup(self.coarse, high).mul_(lookup(self.fine, low)).mul_(2.0 ** (-2 * FRACTION_BITS))
        )


class ExactSelectiveScan2d(Composite):
    """`SelectiveScan2d` in exact arithmetic."""

    in_proj: nn.Module
    conv2d: nn.Module
    out_norm: nn.Module
    out_proj: nn.Module
    rise: Tensor

    def __init__(
        self, block: SelectiveScan2d, parts: Mapping[str, nn.Module], name: str, kernels: Kernels
    ) -> None:
        super().__init__(block, parts, name, kernels)
        self._rank, self._states = block.rank, block.states
        self._projections = [
            kernels.product(weight, None, f"{name}.x_proj_weight.{i}")
            for i, weight in enumerate(block.x_proj_weight)
        ]
        self._steps = [
            kernels.product(weight, bias, f"{name}.dt_projs_weight.{i}")
            for i, (weight, bias) in enumerate(
                zip(block.dt_projs_weight, block.dt_projs_bias.view(DIRECTIONS, -1), strict=True)
            )
        ]
        logs = block.A_logs.detach().double().cpu().numpy()
        if not np.abs(logs).max() <= LARGEST_LOG:  # a NaN is none either
            raise CheckpointError(
                f"{name}.A_logs: is up to {np.abs(logs).max():.4g}, exact arithmetic allows "
                f"{LARGEST_LOG}; the training diverged, export an earlier checkpoint"
            )
        device = block.A_logs.device
        exponents = np.rint(logs * (LOG2_E * (1 << FINE_BITS))).astype(np.int64)
        below = -exponents % (1 << FINE_BITS)
        rates = coarse_powers()[below // OCTAVE_PARTS] * fine_powers()[below % OCTAVE_PARTS]
        rates = np.ldexp(rates, (exponents + below >> FINE_BITS) - 2 * FRACTION_BITS)
        # Octaves over 2^16 per unit of a step.
        rates *= LOG2_E * 2.0 ** (FINE_BITS - STEP_BITS)
        self._rates = torch.from_numpy(rates).to(device).view(DIRECTIONS, -1, self._states)
        skip = integer_scale(block.Ds.detach().double().cpu().numpy(), f"{name}.Ds")
        self._skip = torch.from_numpy(skip).to(device).view(DIRECTIONS, 1, 1, -1)
        self._powers = PowersOfTwo()
        self.silu = Silu()
        self.register_buffer("rise", torch.tensor(step_rise()), persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        """(B, H, W, C) stays."""
        v, gate = self.in_proj(t).chunk(2, dim=-1)
        v = self.silu(self.conv2d(v.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        y = self.out_norm(self._scanned(v))
        return self.out_proj(gated(y, self.silu(gate), GRID_BITS))

    def _scanned(self, v: Tensor) -> Tensor:
        """(B, H, W, D) -> the sum of the four scans."""
        b, h, w, d = v.shape
        rows = v.reshape(-1, d)
        found = []
        for projection, step in zip(self._projections, self._steps, strict=True):
            projected = requantize(projection.multiply(rows, projection.operand())).float()
            steps, others = projected.split((self._rank, 2 * self._states), dim=1)
            steps = requantize(step.multiply(steps.contiguous(), step.operand())).float()
            delta = self._delta(steps)
            found.append(torch.cat([delta, others.double()], dim=1).view(b, h, w, -1))
        inputs = _in_order(torch.stack([v.double()] * DIRECTIONS))
        sizes = (d, self._states, self._states)
        delta, b_l, c_l = _in_order(torch.stack(found)).split(sizes, dim=-1)
        out = self._scan(inputs, delta, b_l, c_l)
        out.mul_(2.0 ** -(STEP_BITS + 2 * GRID_BITS))
        out.add_((inputs * self._skip).mul_(2.0**-SCALE_BITS))
        out = requantize(out)
        by_row = (out[0] + out[2].flip(0)).view(h, w, b, d).permute(2, 0, 1, 3)
        by_column = (out[1] + out[3].flip(0)).view(w, h, b, d).permute(2, 1, 0, 3)
        return (by_row + by_column).clamp_(-LIMIT, LIMIT).float()

    def _delta(self, steps: Tensor) -> Tensor:
        """Softplus of a grid tensor, over 2^20, in float64."""
        rise = lookup(self.rise, steps.abs().clamp_(max=len(self.rise) - 1))
        return steps.clamp_min(0).double().mul_(1 << STEP_BITS - GRID_BITS).add_(rise)

    def _scan(self, u: Tensor, delta: Tensor, b: Tensor, c: Tensor) -> Tensor:
        """(K, T, B, ·) float64 all -> Σ_n C·h (K, T, B, D), over 2^50."""
        out = torch.empty_like(u)
        state = u.new_zeros(DIRECTIONS, u.shape[2], u.shape[3], self._states)
        for start in range(0, u.shape[1], CHUNK):
            part = slice(start, start + CHUNK)
            octaves = (delta[:, part, :, :, None] * self._rates[:, None, None]).round_()
            decay = self._powers(octaves)
            x = (delta[:, part] * u[:, part])[..., None] * b[:, part, :, None, :]
            for i in range(x.shape[1]):
                # Two operations, so that none is fused with the other.
                state = (state * decay[:, i]).add_(x[:, i])
                x[:, i] = state
            total = x[..., 0] * c[:, part, :, None, 0]
            for n in range(1, self._states):
                total += x[..., n] * c[:, part, :, None, n]
            out[:, part] = total
        return out


def _in_order(x: Tensor) -> Tensor:
    """(K, B, H, W, C), one map a direction -> (K, T, B, C), each in the order it is scanned in."""
    k, _, h, w, _ = x.shape
    rows, columns = x.permute(0, 2, 3, 1, 4), x.permute(0, 3, 2, 1, 4)
    pick = [rows[0], columns[1], rows[2], columns[3]]
    flat = [part.reshape(h * w, *part.shape[2:]) for part in pick[:k]]
    return torch.stack([flat[0], flat[1], flat[2].flip(0), flat[3].flip(0)])


class ExactStateSpaceBlock(Composite):
    """`StateSpaceBlock` in exact arithmetic."""

    norm: nn.Module
    op: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) stays."""
        t = x.permute(0, 2, 3, 1)
        return added(t, self.op(self.norm(t))).permute(0, 3, 1, 2)


COMPOSITES: dict[type[nn.Module], Callable[..., Composite]] = {
    SelectiveScan2d: ExactSelectiveScan2d,
    StateSpaceBlock: ExactStateSpaceBlock,
}
"""The exact counterpart of each of these blocks."""
