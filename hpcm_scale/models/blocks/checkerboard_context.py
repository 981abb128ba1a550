"""Context from the half of a checkerboard that is known, at the positions of the other half."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CheckerboardConv(nn.Conv2d):
    """k×k convolution, k odd, of a map that is 0 off the anchors, at the other positions alone.

    (B, I, H, W) -> dense (B, O, H, W/2): of every row the positions that are no anchors, in column
    order. Source: He et al., arXiv 2103.15306. Of the kernel only the taps at an odd offset (row +
    column) meet an anchor; the others change nothing.

    Args:
        anchors: parity of row + column of the positions where the map is not 0.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, anchors: int) -> None:
        super().__init__(inputs, outputs, kernel, padding=kernel // 2)
        self.anchors = anchors

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        reach = self.kernel_size[0] // 2
        rows = []
        for row in range(2):  # the even rows, then the odd ones: every other position of each
            column = (1 - self.anchors - row) % 2
            padded = F.pad(x, (reach - column, reach, reach - row, reach))
            rows.append(F.conv2d(padded, self.weight, self.bias, stride=2))
        b, c, h, w = rows[0].shape
        rows = [part[..., : x.shape[-1] // 2].permute(0, 2, 3, 1) for part in rows]
        return torch.stack(rows, dim=2).reshape(b, 2 * h, w, c).permute(0, 3, 1, 2)
