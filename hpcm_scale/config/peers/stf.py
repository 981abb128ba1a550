"""The configuration of STF."""

from typing import Literal, Self

from pydantic import model_validator

from hpcm_scale.config.model import ModelConfig, fitting_heads, scaled_blocks, scaled_channels
from hpcm_scale.config.strict import Positive

STF_SLICES = 12
"""Equal slices of the latent channels."""
STF_LEVELS = 4
"""Resolutions of the transforms, each of twice the channels of the one above."""


class StfConfig(ModelConfig):
    """STF (arXiv 2203.08450). The defaults are the published network.

    Trained here without the published program's stochastic depth.
    """

    name: str = "stf"
    architecture: Literal["stf"] = "stf"  # pyright: ignore[reportIncompatibleVariableOverride] frozen
    """The kind of network."""
    latent_channels: Positive = 384
    """M, channels of the latents y: 8 times the width; a multiple of 12, the slices."""
    hyper_channels: Positive = 192
    width: Positive = 48
    """Channels of the transforms at 1/2 of the image side; they double at each lower resolution."""
    heads: Positive = 3
    """Attention heads there, which double too; they divide the width."""
    depths: tuple[Positive, Positive, Positive, Positive] = (2, 2, 6, 2)
    """Swin layers of g_a at each resolution, of g_s in the opposite order; every second shifted."""
    hyper_widths: tuple[Positive, Positive, Positive] = (336, 288, 240)
    """Channels between the convolutions of h_a, in the opposite order of both nets of h_s."""
    net_widths: tuple[Positive, Positive, Positive, Positive] = (224, 176, 128, 64)
    """Channels between the convolutions of a slice's nets."""
    support: Positive = 6
    """Slices that a later one reads at most: the first ones."""

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        expected = self.width << STF_LEVELS - 1
        if self.latent_channels != expected or self.latent_channels % STF_SLICES:
            raise ValueError(
                f"latent_channels: {self.latent_channels} is not 8 times the width "
                f"{self.width}, or no multiple of {STF_SLICES}, the slices"
            )
        if self.width % self.heads:
            raise ValueError(f"heads: {self.heads} do not divide {self.width} channels")
        return self

    def scaled(self, width: float, depth: float) -> Self:
        """This network, wider or deeper: all channels in proportion.

        The width is rounded to 3, so that the latents are whole slices; other channels to 4. Heads
        keep their size, as nearly as it divides the channels. Layers grow in number in proportion
        and never fall below 1.
        """
        channels = scaled_channels(self.width, width, 3)
        return self._scaled(
            width,
            depth,
            {
                "latent_channels": channels << STF_LEVELS - 1,
                "hyper_channels": scaled_channels(self.hyper_channels, width, 4),
                "width": channels,
                "heads": fitting_heads(channels, self.width / self.heads),
                "depths": [scaled_blocks(count, depth) for count in self.depths],
                "hyper_widths": [scaled_channels(count, width, 4) for count in self.hyper_widths],
                "net_widths": [scaled_channels(count, width, 4) for count in self.net_widths],
            },
        )
