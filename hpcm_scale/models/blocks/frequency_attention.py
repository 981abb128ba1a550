"""Attention in windows of four shapes side by side, and the transformer block made of it.

Source: FLIC (arXiv 2310.16387): square windows for low and high frequencies, flat and tall ones for
the two directions. Maps are (B, C, H, W) in channels_last memory; inside, layers work on positions,
(B, H, W, C).
"""

import torch
from torch import Tensor, nn

from hpcm_scale.config.peers.flic import QUARTERS
from hpcm_scale.models.blocks.resampling import Conv1x1
from hpcm_scale.models.blocks.window_fourier import WindowFourier
from hpcm_scale.models.linear import Linear

Sides = tuple[int, int]
"""Rows and columns."""


class ShapedWindowAttention(nn.Module):
    """Attention inside windows of one shape, with a bias for every relative position.

    (B, H, W, 3, C), queries, keys and values of heads of contiguous channels -> (B, H, W, C). H and
    W are multiples of the window's sides; windows lie from the top left corner of the map, which is
    first rolled, so that those at its border mix opposite edges. A window of one position attends
    to itself alone: its values are the result, and there is no bias.

    Args:
        window: its sides.
        rolled: positions that the map is rolled by, towards the top left.
        back: positions that the result is rolled back by.
    """

    def __init__(self, heads: int, window: Sides, rolled: Sides, back: Sides) -> None:
        super().__init__()
        self.heads = heads
        self.window = window
        self.rolled = (-rolled[0], -rolled[1])
        self.back = back
        rows, columns = window
        self.relative_position_bias_table = None
        if rows * columns > 1:
            entries = (2 * rows - 1) * (2 * columns - 1)
            self.relative_position_bias_table = nn.Parameter(torch.zeros(entries, heads))

    def forward(self, qkv: Tensor) -> Tensor:
        if any(self.rolled):
            qkv = qkv.roll(self.rolled, dims=(1, 2))
        table = self.relative_position_bias_table
        out = qkv[..., 2, :] if table is None else self._attended(qkv, table)
        return out.roll(self.back, dims=(1, 2)) if any(self.back) else out

    def _attended(self, qkv: Tensor, table: Tensor) -> Tensor:
        b, h, w, _, c = qkv.shape
        rows, columns = self.window
        size = c // self.heads
        parts = qkv.reshape(b, h // rows, rows, w // columns, columns, 3, self.heads, size)
        # (3, B, window rows, window columns, heads, rows·columns, size)
        q, k, v = parts.permute(5, 0, 1, 3, 6, 2, 4, 7).flatten(5, 6)
        logits = (q * size**-0.5) @ k.transpose(-1, -2) + self.bias(table)
        out = (logits.softmax(dim=-1) @ v).unflatten(4, self.window)
        return out.permute(0, 1, 4, 2, 5, 3, 6).reshape(b, h, w, c)

    def bias(self, table: Tensor) -> Tensor:
        """(heads, n, n): what the table says of a query's place relative to a key's."""
        rows, columns = (torch.arange(side, device=table.device) for side in self.window)
        down = rows[:, None] - rows + len(rows) - 1  # (rows, rows)
        right = columns[:, None] - columns + len(columns) - 1
        index = down[:, None, :, None] * (2 * len(columns) - 1) + right[None, :, None, :]
        n = len(rows) * len(columns)
        return table[index.reshape(n, n)].permute(2, 0, 1)


class FrequencyAttention(nn.Module):
    """Attention of each quarter of the channels in windows of its own: (B, H, W, C) stays.

    The windows are 2w×2w, w/2×w/2, w/2×2w and 2w×w/2 positions.

    Args:
        channels: C, a multiple of `heads`.
        heads: over all channels, a multiple of 4.
        w: a multiple of 2; H and W are multiples of 2w.
        shifted: whether windows start half their sides from the map's edge.
        displaced: whether sides of one position are rolled in by one and not back.
    """

    def __init__(self, channels: int, heads: int, w: int, shifted: bool, displaced: bool) -> None:
        super().__init__()
        long, short = 2 * w, w // 2
        self.qkv = Linear(channels, 3 * channels, bias=False)
        self.attns = nn.ModuleList()
        for window in ((long, long), (short, short), (short, long), (long, short)):
            back = (window[0] // 2, window[1] // 2) if shifted else (0, 0)
            rolled = back
            if shifted and displaced:
                rolled = (-(-window[0] // 2), -(-window[1] // 2))
            self.attns.append(ShapedWindowAttention(heads // QUARTERS, window, rolled, back))

    def forward(self, t: Tensor) -> Tensor:
        qkv = self.qkv(t).unflatten(-1, (3, QUARTERS, -1))
        return torch.cat([attend(qkv[..., i, :]) for i, attend in enumerate(self.attns)], dim=-1)


class FrequencyBlock(nn.Module):
    """t + attention, then t + a net whose result is modulated by frequency: (B, H, W, C) stays."""

    def __init__(self, channels: int, heads: int, w: int, shifted: bool, displaced: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attention = FrequencyAttention(channels, heads, w, shifted, displaced)
        self.proj = Linear(channels, channels)
        self.norm2 = nn.LayerNorm(channels)
        self.ffn = nn.Sequential(
            Linear(channels, 4 * channels), nn.GELU(), Linear(4 * channels, channels)
        )
        self.fm = WindowFourier(channels, 2 * w)

    def forward(self, t: Tensor) -> Tensor:
        t = t + self.proj(self.attention(self.norm1(t)))
        return t + self.fm(self.ffn(self.norm2(t)))


class FrequencyAwareTransformer(nn.Module):
    """v + a frequency block between two 1×1 convolutions: (B, C, H, W) stays.

    Args: as for `FrequencyAttention`.
    """

    def __init__(
        self, channels: int, heads: int, w: int, shifted: bool, displaced: bool = False
    ) -> None:
        super().__init__()
        self.conv1_1 = Conv1x1(channels, channels)
        self.trans_block = FrequencyBlock(channels, heads, w, shifted, displaced)
        self.conv1_2 = Conv1x1(channels, channels)

    def forward(self, v: Tensor) -> Tensor:
        t = self.trans_block(self.conv1_1(v).permute(0, 2, 3, 1))
        return v + self.conv1_2(t.permute(0, 3, 1, 2))
