"""The rate-distortion objective and the figures reported with it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hpcm_scale.config import LossConfig
from hpcm_scale.models.codec_network import Output
from hpcm_scale.models.gains import lambdas_at

PIXEL_RANGE = 255
"""The papers' λ belongs to squared errors of 8-bit values."""
AUXILIARY_WEIGHT = 1e-3
"""Of the auxiliary loss in what a step descends. Adam takes no notice of it; without it the
gradient of the quantiles, near 20 at first, would rule the norm that all gradients are clipped to
(CompressAI clips before it adds them)."""


@dataclass(frozen=True)
class RateDistortion:
    """loss = λ·255²·MSE + bpp, or λ·(1 − MS-SSIM) + bpp (arXiv 2507.19125).

    At many rates, that times (λ₀/λ)^`rate_balance`, λ₀ the geometric middle of the range.
    """

    config: LossConfig
    rates: Sequence[float] = ()
    """λ of the gain vectors of a network that codes at every rate."""

    def figure_names(self, scales: int) -> tuple[str, ...]:
        """Names of what `per_image` gives, in order, for a network with so many scales.

        HPCM has three, the baselines one, whose `bpp_y_s1` is all of y.
        """
        names = ("loss", "bpp", "mse", "bpp_z", *(f"bpp_y_s{s + 1}" for s in range(scales)))
        return (*names, "ms_ssim") if self.config.distortion == "ms-ssim" else names

    def per_image(self, output: Output, x: Tensor, places: Tensor | None = None) -> Tensor:
        """The figures of each image.

        Args:
            output: x̂ of the size of `x`, and the bits of all that was coded, padding included.
            x: (B, 3, H, W) in [0, 1]; for MS-SSIM, whose five scales need it, of sides over 160.
            places: (B,) of each image among `rates`; needed where there are any.

        Returns:
            (B, figures) in the order of `figure_names`: loss, bits per pixel in all, mean squared
            error of values in [0, 1], then bits per pixel of z and of y in each scale; MS-SSIM
            where it is the distortion.
        """
        x_hat = output.x_hat.float()
        mse = (x_hat - x).square().flatten(1).mean(1)
        rates = output.bits.float() / (x.shape[-2] * x.shape[-1])
        bpp = rates.sum(1)
        lmbda, weight = self._lambdas(places)
        figures = [bpp, mse, rates[:, -1], *rates[:, :-1].unbind(1)]
        if self.config.distortion == "ms-ssim":
            from pytorch_msssim import ms_ssim  # of an extra that few runs need

            similarity = ms_ssim(x_hat, x, data_range=1.0, size_average=False)
            figures.append(similarity)
            distortion = lmbda * (1 - similarity)
        else:
            distortion = lmbda * PIXEL_RANGE**2 * mse
        return torch.stack([weight * (distortion + bpp), *figures], dim=1)

    def _lambdas(self, places: Tensor | None) -> tuple[Tensor | float, Tensor | float]:
        """λ of each image, and what its objective counts for."""
        if not self.rates:
            return self.config.lmbda, 1.0
        assert places is not None  # a network of many rates is asked for some
        lmbda = lambdas_at(self.rates, places)
        centre = math.sqrt(self.rates[0] * self.rates[-1])
        return lmbda, (centre / lmbda) ** self.config.rate_balance


def training_loss(per_image: Tensor, output: Output) -> Tensor:
    """What a step descends: the mean of the objective, and the auxiliary loss of the z prior.

    They have no parameter in common.

    Args:
        per_image: (B, figures), the loss first.
    """
    loss = per_image[:, 0].mean()
    return loss if output.auxiliary is None else loss + AUXILIARY_WEIGHT * output.auxiliary.float()
