"""Attention inside the window around each position, the windows overlapping.

Source: MLIC++ (arXiv 2307.15421). Shape letters: u channels in `HEADS` heads, n windows.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpcm_scale.models.linear import linear

SIDE = 5
"""Side of a window, in positions."""
HEADS = 2
UNSEEN = -100.0
"""Added to the logit of a pair that are not both anchors. A query that is none has it on all of its
logits, where it changes nothing: it sees the whole window, the border included."""


class WindowAttention(nn.Module):
    """Attention of all positions of a window to each other, in the windows around non-anchors.

    (B, 3u, H, W), queries, keys and values, of every one channel 2d + head -> (B·H·W/2, 25, u), of
    which channel head·u/2 + d; the windows row by row, 0 outside the map.
    """

    def __init__(self, anchors: int) -> None:
        super().__init__()
        self.anchors = anchors
        self.relative_position_table = nn.Parameter(torch.empty((2 * SIDE - 1) ** 2, HEADS))
        nn.init.trunc_normal_(self.relative_position_table, std=0.02)

    def forward(self, qkv: Tensor) -> Tensor:
        b, c, h, w = qkv.shape
        size = c // (3 * HEADS)
        by_head = qkv.permute(0, 2, 3, 1).reshape(b, h, w, 3, size, HEADS).transpose(4, 5)
        windows = self.windows(by_head.reshape(b, h, w, c).permute(0, 3, 1, 2))
        q, k, v = windows.view(-1, SIDE**2, 3, HEADS, size).permute(2, 0, 3, 1, 4)
        logits = (q @ k.transpose(2, 3) * size**-0.5).view(b, -1, HEADS, SIDE**2, SIDE**2)
        logits = logits + self.bias() + self.mask(h, w, qkv)[:, None]
        attended = logits.softmax(dim=-1).view(-1, HEADS, SIDE**2, SIDE**2) @ v
        return attended.transpose(1, 2).reshape(-1, SIDE**2, HEADS * size)

    def windows(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, H, W/2, 25, C): the windows around the positions not anchors."""
        reach = SIDE // 2
        around = F.pad(x, (reach,) * 4).unfold(2, SIDE, 1).unfold(3, SIDE, 1)
        start = 1 - self.anchors
        rows = (around[:, :, 0::2, start::2], around[:, :, 1::2, 1 - start :: 2])
        stacked = torch.stack([part.permute(0, 2, 3, 4, 5, 1) for part in rows], dim=2)
        return stacked.reshape(len(x), x.shape[2], x.shape[3] // 2, SIDE**2, x.shape[1])

    def bias(self) -> Tensor:
        """(heads, 25, 25): what the table says of a query's place relative to a key's."""
        table = self.relative_position_table
        place = torch.arange(SIDE, device=table.device)
        apart = place[:, None] - place + SIDE - 1  # (5, 5)
        index = apart[:, None, :, None] * (2 * SIDE - 1) + apart[None, :, None, :]
        return table[index.reshape(SIDE**2, SIDE**2)].permute(2, 0, 1)

    def mask(self, h: int, w: int, like: Tensor) -> Tensor:
        """(H·W/2, 25, 25): 0 where query and key are both anchors inside the map, else `UNSEEN`."""
        rows, columns = (torch.arange(side, device=like.device) for side in (h, w))
        anchors = ((rows[:, None] + columns) % 2 == self.anchors).to(like.dtype)
        seen = self.windows(anchors[None, None]).view(-1, SIDE**2)
        return UNSEEN * (1 - seen[:, :, None] * seen[:, None, :])


class WindowConv(nn.Conv2d):
    """One value of a window: a 5×5 convolution without border, (n, 25, u) -> (n, outputs)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, SIDE)

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        weight = self.weight.permute(0, 2, 3, 1).reshape(self.out_channels, -1)
        return linear(x.flatten(1), weight, self.bias)


class LocalContext(nn.Module):
    """Context from the anchors around a position: (B, u, H, W) -> dense (B, 2u, H, W/2).

    Args:
        anchors: parity of row + column of the positions where the map is not 0.
    """

    def __init__(self, unit: int, anchors: int) -> None:
        super().__init__()
        outputs = 2 * unit
        self.norm1 = nn.LayerNorm(unit)
        self.qkv_proj = nn.Linear(unit, 3 * unit)
        self.attend = WindowAttention(anchors)
        self.fusion = WindowConv(unit, outputs)
        self.proj = nn.Linear(outputs, outputs)
        self.norm2 = nn.LayerNorm(outputs)
        self.mlp = nn.Sequential(
            nn.Linear(outputs, 2 * outputs), nn.GELU(), nn.Linear(2 * outputs, outputs)
        )

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        qkv = self.qkv_proj(self.norm1(x.permute(0, 2, 3, 1)))
        t = self.proj(self.fusion(self.attend(qkv.permute(0, 3, 1, 2))))
        t = t + self.mlp(self.norm2(t))
        return t.view(b, h, w // 2, -1).permute(0, 3, 1, 2)
