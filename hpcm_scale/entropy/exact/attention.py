"""Windowed attention in exact arithmetic, its softmax by a table of powers of two."""

import torch
from torch import Tensor, nn

from hpcm_scale.entropy.exact.grid import GRID, requantize
from hpcm_scale.entropy.exact.kernels import ORIGINAL_KERNELS, Kernels
from hpcm_scale.entropy.exact.neighbourhoods import strips
from hpcm_scale.entropy.exact.softmax import (
    LARGEST_DROP,
    WEIGHT_BITS,
    attended_addend,
    logit_factor,
    powers_of_two,
)
from hpcm_scale.models.context import WindowFusion


def softmax_weights(logits: Tensor, powers: Tensor) -> Tensor:
    """Softmax over the last dimension of logits to base 2, of grid points: integers over 2^15.

    Args:
        logits: float64 integers; −∞ for what is not seen.
        powers: `powers_of_two`.
    """
    drop = (logits.amax(-1, keepdim=True) - logits).clamp_(max=LARGEST_DROP)
    found = powers.index_select(0, drop.int().view(-1)).view(drop.shape)
    total = found.sum(-1, keepdim=True)
    # Correctly rounded, the quotient falls on a half only if it is one: both are integers below
    # 2^40.
    return found.mul_(1 << WEIGHT_BITS).div_(total).round_()


class ExactWindowFusion(nn.Module):
    """A WindowFusion: attention in windows, plus a projection of ψ."""

    def __init__(
        self, fusion: WindowFusion, name: str, kernels: Kernels = ORIGINAL_KERNELS
    ) -> None:
        super().__init__()
        self._heads, self._window = fusion.heads, fusion.window
        channels = fusion.query.out_channels
        size = channels // fusion.heads
        self._factor = logit_factor(size, name)
        self._query, self._key, self._value = (
            kernels.product(layer.weight.flatten(1), layer.bias, f"{name}.{part}")
            for part in ("query", "key", "value")
            if (layer := getattr(fusion, part))
        )
        out = fusion.out
        self._out = kernels.product(
            out.weight.flatten(1), out.bias, f"{name}.out", attended_addend(fusion.window)
        )
        self._powers = torch.from_numpy(powers_of_two().copy()).to(out.weight.device)

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
                self._windows(requantize(layer.multiply(x, operand)).double(), w)
                for layer, x, operand in zip(layers, (rows, read, read), operands, strict=False)
            )
            # (windows, heads, s·s, d) back to (r, w, 2M)
            attended = self._weights(query, key) @ value
            attended = attended.view(-1, w // s, heads, s, s, c // heads)
            attended = attended.permute(0, 3, 1, 4, 2, 5).reshape(-1, c)
            total = self._out.multiply(rows, operands[-1]).double()
            total.add_(attended, alpha=2.0**-WEIGHT_BITS)
            out[part] = requantize(total).view(-1, w, c)
        return out.permute(0, 3, 1, 2)

    def _weights(self, query: Tensor, key: Tensor) -> Tensor:
        """Attention weights over the keys, integers over 2^15."""
        logits = (query @ key.transpose(-1, -2)).mul_(1 / GRID).round_()
        return softmax_weights(logits.mul_(self._factor).round_(), self._powers)

    def _windows(self, rows: Tensor, width: int) -> Tensor:
        """(r·w, 2M) -> (windows, heads, s·s, d)."""
        s = self._window
        size = rows.shape[1] // self._heads
        x = rows.view(-1, s, width // s, s, self._heads, size)
        return x.permute(0, 2, 4, 1, 3, 5).reshape(-1, self._heads, s * s, size)
