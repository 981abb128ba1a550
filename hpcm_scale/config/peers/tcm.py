"""The configuration of TCM."""

from typing import Literal, Self

from pydantic import model_validator

from hpcm_scale.config.model import ModelConfig, fitting_heads, scaled_blocks, scaled_channels
from hpcm_scale.config.strict import Positive

TCM_SLICES = 5
"""Equal slices of the latent channels, coded one after the other."""


class TcmConfig(ModelConfig):
    """TCM (arXiv 2303.14978). The defaults are the large network that the papers compare with."""

    name: str = "tcm"
    architecture: Literal["tcm"] = "tcm"  # pyright: ignore[reportIncompatibleVariableOverride] frozen
    """The kind of network."""
    latent_channels: Positive = 320
    """M, channels of the latents y; a multiple of 5, the slices."""
    hyper_channels: Positive = 192
    width: Positive = 128
    """N: channels of the convolutions' half and of the attention's half of every transform."""
    heads: tuple[Positive, Positive, Positive] = (16, 8, 4)
    """Attention heads of g_a and g_s at 1/2, 1/4 and 1/8 of the image side; they divide N."""
    hyper_heads: Positive = 4
    """Attention heads of the hyper nets; they divide N."""
    depth: Positive = 1
    """Pairs of mixed blocks, plain and shifted, at each resolution."""
    context_width: Positive = 128
    """Channels inside the attention of a slice's context; even."""
    context_heads: Positive = 8
    """Attention heads there."""
    net_widths: tuple[Positive, Positive] = (224, 128)
    """Channels between the convolutions of a slice's nets."""

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.latent_channels % TCM_SLICES:
            raise ValueError(
                f"latent_channels: {self.latent_channels} is not a multiple of {TCM_SLICES}, "
                "the slices"
            )
        pairs = [(self.width, heads) for heads in (*self.heads, self.hyper_heads)]
        for channels, heads in (*pairs, (self.context_width, self.context_heads)):
            if channels % heads:
                raise ValueError(f"heads: {heads} do not divide {channels} channels")
        if self.context_width % 2:
            raise ValueError(f"context_width: {self.context_width} is odd; a residual unit halves")
        return self

    def scaled(self, width: float, depth: float) -> Self:
        """This network, wider or deeper: all channels in proportion, rounded to 4.

        Heads keep their size, as nearly as it divides the channels, and follow the width in number.
        Pairs of blocks grow in number in proportion and never fall below 1.
        """
        n = scaled_channels(self.width, width, 4)
        context = scaled_channels(self.context_width, width, 4)
        return self._scaled(
            width,
            depth,
            {
                "latent_channels": scaled_channels(self.latent_channels // TCM_SLICES, width, 4)
                * TCM_SLICES,
                "hyper_channels": scaled_channels(self.hyper_channels, width, 4),
                "width": n,
                "heads": [fitting_heads(n, self.width / heads) for heads in self.heads],
                "hyper_heads": fitting_heads(n, self.width / self.hyper_heads),
                "depth": scaled_blocks(self.depth, depth),
                "context_width": context,
                "context_heads": fitting_heads(context, self.context_width / self.context_heads),
                "net_widths": [scaled_channels(count, width, 4) for count in self.net_widths],
            },
        )
