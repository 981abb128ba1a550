"""The configuration of MambaVC."""

from typing import Literal, Self

from pydantic import model_validator

from hpcm_scale.config.model import ModelConfig, fitting_heads, scaled_blocks, scaled_channels
from hpcm_scale.config.strict import Positive

MAMBAVC_SLICES = 5
"""Equal slices of the latent channels, coded one after the other."""


class MambavcConfig(ModelConfig):
    """MambaVC (arXiv 2405.15413). The defaults are the published network.

    Trained here without the published program's dropping of whole blocks.
    """

    name: str = "mambavc"
    architecture: Literal["mambavc"] = "mambavc"  # pyright: ignore[reportIncompatibleVariableOverride] frozen
    """The kind of network."""
    latent_channels: Positive = 320
    """M, channels of the latents y; a multiple of 5, the slices."""
    hyper_channels: Positive = 192
    width: Positive = 256
    """Channels of the transforms and of the hyper nets."""
    depths: tuple[Positive, Positive, Positive] = (2, 2, 9)
    """State space blocks of g_a and of g_s at 1/2, 1/4 and 1/8 of the image side."""
    hyper_depth: Positive = 2
    """State space blocks of h_a and of both nets of h_s."""
    expansion: Positive = 2
    """Channels inside a block over its own."""
    states: Positive = 16
    """States of every channel of a scan."""
    rank: Positive = 16
    """Numbers that the step sizes of a position are made of."""
    context_width: Positive = 128
    """Channels inside the attention of a slice's context; even."""
    context_heads: Positive = 8
    """Attention heads there."""
    net_widths: tuple[Positive, Positive] = (224, 128)
    """Channels between the convolutions of a slice's nets."""

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.latent_channels % MAMBAVC_SLICES:
            raise ValueError(
                f"latent_channels: {self.latent_channels} is not a multiple of {MAMBAVC_SLICES}, "
                "the slices"
            )
        if self.context_width % 2 or self.context_width % self.context_heads:
            raise ValueError(
                f"context_width: {self.context_width} is odd or not a multiple of its "
                f"{self.context_heads} heads"
            )
        return self

    def scaled(self, width: float, depth: float) -> Self:
        """This network, wider or deeper: all channels in proportion, rounded to 4.

        The rank follows the width, the states of a channel stay. Heads keep their size, as nearly
        as it divides the channels. Blocks grow in number in proportion and never fall below 1.
        """
        context = scaled_channels(self.context_width, width, 4)
        size = self.latent_channels // MAMBAVC_SLICES
        return self._scaled(
            width,
            depth,
            {
                "latent_channels": scaled_channels(size, width, 4) * MAMBAVC_SLICES,
                "hyper_channels": scaled_channels(self.hyper_channels, width, 4),
                "width": scaled_channels(self.width, width, 4),
                "depths": [scaled_blocks(count, depth) for count in self.depths],
                "hyper_depth": scaled_blocks(self.hyper_depth, depth),
                "rank": scaled_channels(self.rank, width, 1),
                "context_width": context,
                "context_heads": fitting_heads(context, self.context_width / self.context_heads),
                "net_widths": [scaled_channels(count, width, 4) for count in self.net_widths],
            },
        )
