"""The configuration of DCAE."""

from typing import Literal, Self

from pydantic import model_validator

from hpcm_scale.config.model import ModelConfig, fitting_heads, scaled_blocks, scaled_channels
from hpcm_scale.config.strict import Positive

DCAE_SLICES = 5
"""Equal slices of the latent channels, coded one after the other."""


class DcaeConfig(ModelConfig):
    """DCAE (arXiv 2504.00496). The defaults are the published network."""

    name: str = "dcae"
    architecture: Literal["dcae"] = "dcae"  # pyright: ignore[reportIncompatibleVariableOverride] frozen
    """The kind of network."""
    latent_channels: Positive = 320
    """M, channels of the latents y; a multiple of 5, the slices."""
    hyper_channels: Positive = 192
    widths: tuple[Positive, Positive, Positive] = (96, 144, 256)
    """Channels of g_a and g_s at 1/2, 1/4 and 1/8 of the image side; even."""
    heads: tuple[Positive, Positive, Positive] = (12, 9, 8)
    """Attention heads at each of the three widths, which they divide."""
    depths: tuple[Positive, Positive, Positive] = (1, 2, 12)
    """Attention layers of g_a and of g_s at each of the three widths; every second shifted."""
    residual_depth: Positive = 3
    """Residual bottlenecks of each resampling."""
    hyper_width: Positive = 192
    """Channels of the hyper nets; even."""
    hyper_heads: Positive = 6
    """Attention heads of the hyper nets."""
    hyper_depth: Positive = 1
    """Attention layers of each hyper net."""
    entries: Positive = 128
    """Entries of the dictionary."""
    dictionary_width: Positive = 640
    """Numbers of an entry, and channels inside the attention to it."""
    dictionary_heads: Positive = 20
    """Heads of that attention."""
    net_widths: tuple[Positive, Positive] = (224, 128)
    """Channels between the convolutions of a slice's nets."""

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.latent_channels % DCAE_SLICES:
            raise ValueError(
                f"latent_channels: {self.latent_channels} is not a multiple of {DCAE_SLICES}, "
                "the slices"
            )
        for channels, heads in (
            *zip(self.widths, self.heads, strict=True),
            (self.hyper_width, self.hyper_heads),
            (self.dictionary_width, self.dictionary_heads),
        ):
            if channels % heads:
                raise ValueError(f"heads: {heads} do not divide {channels} channels")
        for channels in (*self.widths, self.hyper_width, self.latent_channels):
            if channels % 2:
                raise ValueError(f"widths: {channels} is odd; a residual bottleneck halves")
        return self

    def scaled(self, width: float, depth: float) -> Self:
        """This network, wider or deeper: all channels in proportion, rounded to 4.

        Heads keep their size, as nearly as it divides the channels, and follow the width in number;
        the dictionary keeps its number of entries. Layers and bottlenecks grow in number in
        proportion and never fall below 1.
        """
        size = self.latent_channels // DCAE_SLICES
        widths = [scaled_channels(count, width, 4) for count in self.widths]
        sizes = [count / heads for count, heads in zip(self.widths, self.heads, strict=True)]
        hyper = scaled_channels(self.hyper_width, width, 4)
        dictionary = scaled_channels(self.dictionary_width, width, 4)
        return self._scaled(
            width,
            depth,
            {
                "latent_channels": scaled_channels(size, width, 4) * DCAE_SLICES,
                "hyper_channels": scaled_channels(self.hyper_channels, width, 4),
                "widths": widths,
                "heads": [fitting_heads(*pair) for pair in zip(widths, sizes, strict=True)],
                "depths": [scaled_blocks(count, depth) for count in self.depths],
                "residual_depth": scaled_blocks(self.residual_depth, depth),
                "hyper_width": hyper,
                "hyper_heads": fitting_heads(hyper, self.hyper_width / self.hyper_heads),
                "hyper_depth": scaled_blocks(self.hyper_depth, depth),
                "dictionary_width": dictionary,
                "dictionary_heads": fitting_heads(
                    dictionary, self.dictionary_width / self.dictionary_heads
                ),
                "net_widths": [scaled_channels(count, width, 4) for count in self.net_widths],
            },
        )
