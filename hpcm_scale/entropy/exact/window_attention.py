"""Attention in plain and shifted windows, with biases, in exact arithmetic."""

import torch
from torch import Tensor, nn

from hpcm_scale.entropy.exact.attention import softmax_weights
from hpcm_scale.entropy.exact.grid import EXACT, GRID, requantize
from hpcm_scale.entropy.exact.kernels import ORIGINAL_KERNELS, Kernels
from hpcm_scale.entropy.exact.layers import ExactRows
from hpcm_scale.entropy.exact.softmax import LOG2_E, WEIGHT_BITS, logit_factor, powers_of_two
from hpcm_scale.errors import CheckpointError
from hpcm_scale.models.blocks.window_attention import WindowAttention


def integer_bias(bias: Tensor, name: str) -> Tensor:
    """Biases of logits to base e as integers of those to base 2, in float64.

    Args:
        name: of the table they are from, for errors.

    Raises:
        CheckpointError: if the logits could leave what float64 represents exactly.
    """
    bias = bias.detach()
    integers = bias.double().mul_(GRID * LOG2_E).round_()
    if not float(integers.abs().max()) < EXACT / 2:  # a NaN is none either
        raise CheckpointError(
            f"{name}: is up to {float(bias.abs().max()):.4g}; the training diverged, export an "
            "earlier checkpoint"
        )
    return integers


class ExactWindowAttention(nn.Module):
    """A WindowAttention, a row of windows at a time."""

    def __init__(
        self, attention: WindowAttention, name: str, kernels: Kernels = ORIGINAL_KERNELS
    ) -> None:
        super().__init__()
        self._source = (attention,)  # in a tuple, so that its parameters are not this module's
        self._heads, self._side = attention.heads, attention.side
        channels = attention.linear.in_features
        self._factor = logit_factor(channels // self._heads, name)
        self.embedding_layer = ExactRows(
            attention.embedding_layer, f"{name}.embedding_layer", kernels
        )
        self.linear = ExactRows(attention.linear, f"{name}.linear", kernels)
        self._bias = integer_bias(attention.bias(), f"{name}.table")
        self._powers = torch.from_numpy(powers_of_two().copy()).to(self._bias.device)

    def forward(self, t: Tensor) -> Tensor:
        """(B, H, W, C) stays; H and W multiples of the window's side."""
        (attention,) = self._source
        b, h, w, c = t.shape
        s, heads = self._side, self._heads
        if attention.shifted:
            t = t.roll((-(s // 2), -(s // 2)), dims=(1, 2))
        qkv = self.embedding_layer(t).reshape(b, h // s, s, w // s, s, 3, heads, c // heads)
        # (B, window rows, 3, window columns, heads, s·s, d)
        qkv = qkv.permute(0, 1, 5, 3, 6, 2, 4, 7).flatten(5, 6)
        unseen = attention.unseen(h, w, t.device) if attention.shifted else None
        out = t.new_empty(b, h // s, s, w // s, s, c)
        for i in range(b):
            for row in range(h // s):
                q, k, v = qkv[i, row].double().unbind()
                attended = self._attended(q, k, v, None if unseen is None else unseen[row])
                # (columns, heads, s·s, d) to (s, columns, s, heads·d)
                attended = attended.view(-1, heads, s, s, c // heads).permute(2, 0, 3, 1, 4)
                out[i, row] = attended.flatten(3)
        out = self.linear(out.view(b, h, w, c))
        return out.roll((s // 2, s // 2), dims=(1, 2)) if attention.shifted else out

    def _attended(self, q: Tensor, k: Tensor, v: Tensor, unseen: Tensor | None) -> Tensor:
        """(columns, heads, s·s, d) thrice -> the same, requantized."""
        logits = (q @ k.transpose(-1, -2)).mul_(1 / GRID).round_()
        logits.mul_(self._factor).round_().add_(self._bias)
        if unseen is not None:
            logits.masked_fill_(unseen, -torch.inf)
        weights = softmax_weights(logits, self._powers)
        return requantize((weights @ v).mul_(2.0**-WEIGHT_BITS))
