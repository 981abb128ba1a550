"""The configuration of FLIC."""

from typing import Literal, Self

from pydantic import model_validator

from hpcm_scale.config.model import ModelConfig, fitting_heads, scaled_blocks, scaled_channels
from hpcm_scale.config.strict import Positive

FLIC_SLICES = 5
"""Equal slices of the latent channels, which the context transformer codes one after the other."""
QUARTERS = 4
"""Parts of the channels that attend in windows of different shapes."""


class FlicConfig(ModelConfig):
    """FLIC (arXiv 2310.16387). The defaults are the published network."""

    name: str = "flic"
    architecture: Literal["flic"] = "flic"  # pyright: ignore[reportIncompatibleVariableOverride] frozen
    """The kind of network."""
    latent_channels: Positive = 320
    """M, channels of the latents y; a multiple of 20: five slices of a multiple of 4."""
    hyper_channels: Positive = 192
    widths: tuple[Positive, Positive, Positive] = (96, 144, 256)
    """Channels of g_a and g_s at 1/2, 1/4 and 1/8 of the image side; multiples of the heads."""
    heads: tuple[Positive, Positive, Positive] = (8, 16, 32)
    """Attention heads at each of the three widths; multiples of 4, a quarter per window shape."""
    depth: Positive = 1
    """Pairs of transformer blocks, plain and shifted, at each resolution of g_a and of g_s."""
    hyper_width: Positive = 256
    """Channels of the hyper nets at 1/32 of the image side."""
    hyper_heads: Positive = 32
    """Attention heads of the hyper nets; a multiple of 4."""
    hyper_depth: Positive = 1
    """Pairs of transformer blocks of each hyper net."""
    context_depth: Positive = 12
    """Layers of the context transformer."""
    context_heads: Positive = 16
    """Heads of its attention between channels; divides the 4M/5 channels of a slice there."""
    hyper_shift: Literal["published", "restored"] = "restored"
    """Shifted windows of one position in the hyper nets: rolled in and not back, as published
    weights need it, or left in place."""

    @property
    def slice_channels(self) -> int:
        """Channels of a slice."""
        return self.latent_channels // FLIC_SLICES

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        multiple = 4 * FLIC_SLICES
        if self.latent_channels % multiple:
            raise ValueError(
                f"latent_channels: {self.latent_channels} is not a multiple of {multiple} "
                f"({FLIC_SLICES} slices of a multiple of 4)"
            )
        pairs = (*zip(self.widths, self.heads, strict=True), (self.hyper_width, self.hyper_heads))
        for width, heads in pairs:
            if heads % QUARTERS or width % heads:
                raise ValueError(
                    f"heads: {heads} for {width} channels; heads must divide them, and be a "
                    f"multiple of {QUARTERS}"
                )
        if 4 * self.slice_channels % self.context_heads:
            raise ValueError(
                f"context_heads: {self.context_heads} does not divide {4 * self.slice_channels}, "
                "the channels of a slice in the context transformer"
            )
        return self

    def scaled(self, width: float, depth: float) -> Self:
        """This network, wider or deeper: all channels in proportion, rounded to 4.

        Heads in windows keep their size, as nearly as it divides the channels, and follow the width
        in number; heads between channels keep their number, since what they attend to are channels.
        Pairs of blocks and context layers grow in number and never fall below 1.
        """
        widths = [scaled_channels(count, width, QUARTERS) for count in self.widths]
        hyper_width = scaled_channels(self.hyper_width, width, QUARTERS)
        sizes = [count / heads for count, heads in zip(self.widths, self.heads, strict=True)]
        return self._scaled(
            width,
            depth,
            {
                "latent_channels": scaled_channels(self.slice_channels, width, 4) * FLIC_SLICES,
                "hyper_channels": scaled_channels(self.hyper_channels, width, 4),
                "widths": widths,
                "heads": [_heads(*pair) for pair in zip(widths, sizes, strict=True)],
                "depth": scaled_blocks(self.depth, depth),
                "hyper_width": hyper_width,
                "hyper_heads": _heads(hyper_width, self.hyper_width / self.hyper_heads),
                "hyper_depth": scaled_blocks(self.hyper_depth, depth),
                "context_depth": scaled_blocks(self.context_depth, depth),
            },
        )


def _heads(width: int, size: float) -> int:
    """Heads over `width` channels whose size is nearest to `size`, a quarter per window shape."""
    return QUARTERS * fitting_heads(width // QUARTERS, size)
