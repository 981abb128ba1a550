"""Frequency modulation: every window's Fourier bins times weights of their own.

Source: FLIC (arXiv 2310.16387). A fixed linear map of each window of each channel.
"""

import torch
from torch import Tensor, nn

from hpcm_scale.models.density import upcast_half


class WindowFourier(nn.Module):
    """Weigh the k×k windows of each channel by frequency: the shape (B, H, W, C) stays.

    H and W are multiples of k, an even number. Of the k×(k/2 + 1) bins of a real transform each has
    a complex weight; the inverse takes the weighted bins as those of a real signal, whatever they
    are: over rows as complex numbers, then of each row the first and last bin's real part alone.
    At first all weights are 1. In float32 or wider.
    """

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.side = side
        weight = torch.zeros(side, side // 2 + 1, channels, 2)
        weight[..., 0] = 1
        self.complex_weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        k = self.side
        windows = upcast_half(x).reshape(b, h // k, k, w // k, k, c)
        real, imaginary = upcast_half(self.complex_weight).unbind(-1)
        bins = torch.fft.rfft(windows, dim=4, norm="ortho")
        bins = torch.fft.fft(bins, dim=2, norm="ortho")
        bins = bins * torch.complex(real.contiguous(), imaginary.contiguous())[:, None]
        rows = torch.fft.ifft(bins, dim=2, norm="ortho")
        return torch.fft.irfft(rows, n=k, dim=4, norm="ortho").reshape(x.shape).to(x.dtype)
