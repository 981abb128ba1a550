"""Windowed attention in exact arithmetic, its softmax by a table of powers of two."""

from decimal import Decimal, localcontext
from functools import cache

import torch
from torch import Tensor, nn

from hpcm_scale.entropy.exact.grid import EXACT, GRID, GRID_BITS, LIMIT, requantize
from hpcm_scale.entropy.exact.layers import strips
from hpcm_scale.entropy.exact.product import Addend, Product
from hpcm_scale.errors import CheckpointError
from hpcm_scale.models.context import WindowFusion

POWER_BITS = 24
"""The table's powers of two are integers over 2^24."""
WEIGHT_BITS = 15
"""Attention weights are integers over 2^15."""
FACTOR_BITS = 12
"""Logits are multiplied by an integer over 2^12."""
LOG2_E = 1.4426950408889634
LARGEST_DROP = (POWER_BITS + 1) << GRID_BITS
"""Logits that far below the largest have a power of two that rounds to 0."""


class ExactWindowFusion(nn.Module):
    """A WindowFusion: attention in windows, plus a projection of ψ."""

    def __init__(self, fusion: WindowFusion, name: str) -> None:
        super().__init__()
        self._heads, self._window = fusion.heads, fusion.window
        channels = fusion.query.out_channels
        size = channels // fusion.heads
        if size * LIMIT**2 >= EXACT:
            raise CheckpointError(
                f"{name}: heads of {size} channels; exact arithmetic allows {EXACT // LIMIT**2}"
            )
        self._query, self._key, self._value = (
            Product(layer.weight.flatten(1), layer.bias, f"{name}.{part}")
            for part in ("query", "key", "value")
            if (layer := getattr(fusion, part))
        )
        # Rounding lets a row of weights exceed 1, by half a unit each.
        attended = LIMIT + (LIMIT * fusion.window**2 >> WEIGHT_BITS + 1) + 1
        out = fusion.out
        self._out = Product(
            out.weight.flatten(1), out.bias, f"{name}.out", Addend(attended, WEIGHT_BITS)
        )
        factor = round(LOG2_E * (1 << FACTOR_BITS) / size**0.5)
        self._factor = factor / (1 << FACTOR_BITS)
        self._powers = torch.tensor(powers_of_two(), dtype=torch.float64, device=out.weight.device)

    def forward(self, psi: Tensor, context: Tensor) -> Tensor:
        """(B, 2M, h, w) twice -> (B, 2M, h, w); h and w multiples of the window."""
        psi, context = psi.permute(0, 2, 3, 1), context.permute(0, 2, 3, 1)
        w, c = psi.shape[2:]
        out = torch.empty_like(psi, memory_format=torch.contiguous_format)
        layers = (self._query, self._key, self._value, self._out)
        operands = [layer.operand() for layer in layers]
        s, heads = self._window, self._heads
        for part in strips(psi, s):
            rows, read = psi[part].flatten(0, 1), context[part].flatten(0, 1)
            query, key, value = (
                self._windows(requantize(layer.multiply(x, operand)), w)
                for layer, x, operand in zip(layers, (rows, read, read), operands, strict=False)
            )
            # (windows, heads, s·s, d) back to (r, w, 2M)
            attended = self._weights(query, key) @ value
            attended = attended.view(-1, w // s, heads, s, s, c // heads)
            attended = attended.permute(0, 3, 1, 4, 2, 5).reshape(-1, c)
            total = self._out.multiply(rows, operands[-1])
            total.add_(attended, alpha=2.0**-WEIGHT_BITS)
            out[part] = requantize(total).view(-1, w, c)
        return out.permute(0, 3, 1, 2)

    def _weights(self, query: Tensor, key: Tensor) -> Tensor:
        """Attention weights over the keys, integers over 2^15."""
        logits = (query @ key.transpose(-1, -2)).mul_(1 / GRID).round_()
        logits.mul_(self._factor).round_()
        drop = (logits.amax(-1, keepdim=True) - logits).clamp_(max=LARGEST_DROP)
        powers = self._powers[drop.long()]
        total = powers.sum(-1, keepdim=True)
        # Correctly rounded, the quotient falls on a half only if it is one: both are integers
        # below 2^40.
        return powers.mul_(1 << WEIGHT_BITS).div_(total).round_()

    def _windows(self, rows: Tensor, width: int) -> Tensor:
        """(r·w, 2M) -> (windows, heads, s·s, d)."""
        s = self._window
        size = rows.shape[1] // self._heads
        x = rows.view(-1, s, width // s, s, self._heads, size)
        return x.permute(0, 2, 4, 1, 3, 5).reshape(-1, self._heads, s * s, size)


@cache
def powers_of_two() -> tuple[int, ...]:
    """2^24 · 2^(−d/1024) for d = 0, 1, ..., LARGEST_DROP, as integers.

    The first 1024 are the nearest integers; the others are these over a power of two, halves to
    even.
    """
    with localcontext() as context:
        context.prec = 40
        octave = [
            int((Decimal(1 << POWER_BITS) * Decimal(2) ** (Decimal(-d) / GRID)).to_integral_value())
            for d in range(GRID)
        ]
    # Python's round on a ratio of such integers is exact, and takes halves to even.
    powers = [round(power / (1 << i)) for i in range(POWER_BITS + 1) for power in octave]
    return (*powers, 0)
