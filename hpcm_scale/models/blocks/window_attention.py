"""Attention in square windows, plain or shifted, and the Swin layer made of it.

Source: Swin transformer (arXiv 2103.14030), as STF, TCM, MambaVC and DCAE have it. Maps are
(B, C, H, W); inside, layers work on positions, (B, H, W, C).
"""

import torch
from torch import Tensor, nn

from hpcm_scale.models.linear import Linear


class WindowAttention(nn.Module):
    """Attention inside w×w windows from the top left corner: (B, H, W, C) stays.

    Heads of contiguous channels; a learned bias for every relative position. H and W are multiples
    of w. Shifted, the map is first rolled by w/2 towards the top left and the result rolled back;
    positions that only the roll made neighbours do not see each other.

    Args:
        heads: a divisor of the channels.
        side: w.
    """

    entries_first = False
    """Whether the table is ((2w − 1)², heads), instead of (heads, 2w − 1, 2w − 1)."""

    def __init__(self, channels: int, heads: int, side: int, shifted: bool) -> None:
        super().__init__()
        self.heads, self.side, self.shifted = heads, side, shifted
        self.embedding_layer = Linear(channels, 3 * channels)
        span = 2 * side - 1
        shape = (span**2, heads) if self.entries_first else (heads, span, span)
        self.table = nn.Parameter(torch.empty(shape))
        nn.init.trunc_normal_(self.table, std=0.02)
        self.linear = Linear(channels, channels)

    def forward(self, t: Tensor) -> Tensor:
        b, h, w, c = t.shape
        s, heads = self.side, self.heads
        size = c // heads
        if self.shifted:
            t = t.roll((-(s // 2), -(s // 2)), dims=(1, 2))
        qkv = self.embedding_layer(t).view(b, h // s, s, w // s, s, 3, heads, size)
        # (3, B, window rows, window columns, heads, s·s, size)
        q, k, v = qkv.permute(5, 0, 1, 3, 6, 2, 4, 7).flatten(5, 6)
        logits = (q * size**-0.5) @ k.transpose(-1, -2) + self.bias()
        if self.shifted:
            logits = logits.masked_fill(self.unseen(h, w, t.device), -torch.inf)
        out = (logits.softmax(dim=-1) @ v).unflatten(4, (s, s))
        out = self.linear(out.permute(0, 1, 4, 2, 5, 3, 6).reshape(b, h, w, c))
        return out.roll((s // 2, s // 2), dims=(1, 2)) if self.shifted else out

    def bias(self) -> Tensor:
        """(heads, s·s, s·s): what the table says of a query's place relative to a key's."""
        s = self.side
        place = torch.arange(s, device=self.table.device)
        apart = place[:, None] - place + s - 1  # (s, s)
        index = apart[:, None, :, None] * (2 * s - 1) + apart[None, :, None, :]
        index = index.reshape(s * s, s * s)
        if self.entries_first:
            return self.table[index].permute(2, 0, 1)
        return self.table.flatten(1)[:, index]

    def unseen(self, h: int, w: int, device: torch.device) -> Tensor:
        """(window rows, window columns, 1, s·s, s·s): pairs that the roll alone brought together.

        In the last row of windows a query and a key of which one lies in the first half of the
        window and the other in the second; likewise in the last column.
        """
        s = self.side
        late = torch.arange(s, device=device) >= s // 2
        apart = late[:, None] != late  # (s, s)
        last_row, last_column = (
            torch.arange(count // s, device=device) == count // s - 1 for count in (h, w)
        )
        rows = apart[:, None, :, None].expand(s, s, s, s).reshape(s * s, s * s)
        columns = apart[None, :, None, :].expand(s, s, s, s).reshape(s * s, s * s)
        unseen = (last_row[:, None, None, None] & rows) | (last_column[:, None, None] & columns)
        return unseen[:, :, None]


class SwinLayer(nn.Module):
    """t + attention(LN(t)), then t + MLP(LN(t)), the MLP four times as wide: (B, C, H, W) stays."""

    attention = WindowAttention

    def __init__(self, channels: int, heads: int, side: int, shifted: bool) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(channels)
        self.msa = self.attention(channels, heads, side, shifted)
        self.ln2 = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(
            Linear(channels, 4 * channels), nn.GELU(), Linear(4 * channels, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        t = x.permute(0, 2, 3, 1)
        t = t + self.msa(self.ln1(t))
        t = t + self.mlp(self.ln2(t))
        return t.permute(0, 3, 1, 2)
