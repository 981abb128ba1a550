"""The rate-distortion objective and the figures reported with it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hpcm_scale.config import LossConfig
from hpcm_scale.models.codec_network import Output

PIXEL_RANGE = 255
"""The papers' λ belongs to squared errors of 8-bit values."""


def figure_names(scales: int) -> tuple[str, ...]:
    """What `RateDistortion.per_image` gives, in order, of a network with so many scales.

    HPCM has three, the baselines one, whose `bpp_y_s1` is all of y.
    """
    return ("loss", "bpp", "mse", "bpp_z", *(f"bpp_y_s{s + 1}" for s in range(scales)))


@dataclass(frozen=True)
class RateDistortion:
    """loss = λ·255²·MSE + bpp, per arXiv 2507.19125."""

    config: LossConfig

    def per_image(self, output: Output, x: Tensor) -> Tensor:
        """The figures of each image.

        Args:
            output: x̂ of the size of `x`, and the bits of all that was coded, padding included.
            x: (B, 3, H, W) in [0, 1].

        Returns:
            (B, 4 + scales) in the order of `figure_names`: loss, bits per pixel in all, mean
            squared error of values in [0, 1], then bits per pixel of z and of y in each scale.
        """
        mse = (output.x_hat.float() - x).square().flatten(1).mean(1)
        rates = output.bits.float() / (x.shape[-2] * x.shape[-1])
        bpp = rates.sum(1)
        loss = self.config.lmbda * PIXEL_RANGE**2 * mse + bpp
        parts = torch.cat([rates[:, -1:], rates[:, :-1]], dim=1)
        return torch.cat([torch.stack([loss, bpp, mse], dim=1), parts], dim=1)


def psnr(mse: float) -> float:
    """Peak signal-to-noise ratio in dB of a mean squared error of values in [0, 1]."""
    return float(-10 * torch.log10(torch.tensor(mse, dtype=torch.float64)))
