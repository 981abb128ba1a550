"""The configuration of WeConvene."""

from typing import Literal, Self

from pydantic import model_validator

from hpcm_scale.config.model import ModelConfig, scaled_blocks, scaled_channels
from hpcm_scale.config.strict import Positive

WECONVENE_SLICES = 5
"""Equal slices of the low band, and as many of the three high bands."""
BANDS = 4


class WeconveneConfig(ModelConfig):
    """WeConvene (arXiv 2407.09983). The defaults are the published network."""

    name: str = "weconvene"
    architecture: Literal["weconvene"] = "weconvene"  # pyright: ignore[reportIncompatibleVariableOverride] frozen
    """The kind of network."""
    latent_channels: Positive = 1280
    """M, channels of the coded latents: four wavelet bands; a multiple of 20, 5 slices of each."""
    hyper_channels: Positive = 192
    width: Positive = 128
    """Channels of the transforms and of the hyper nets."""
    depth: Positive = 3
    """Residual blocks at each resolution."""
    context_width: Positive = 128
    """Channels inside the gate of a slice's context; even."""
    net_widths: tuple[Positive, Positive] = (224, 128)
    """Channels between the convolutions of a slice's nets."""
    wavelet: Literal["exact", "published"] = "exact"
    """Haar's factor: ½, or as published weights have it, the square of a single-precision 1/√2."""

    @property
    def band_channels(self) -> int:
        """Channels of each wavelet band."""
        return self.latent_channels // BANDS

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.latent_channels % (BANDS * WECONVENE_SLICES):
            raise ValueError(
                f"latent_channels: {self.latent_channels} is not a multiple of "
                f"{BANDS * WECONVENE_SLICES}, the slices of the wavelet bands"
            )
        if self.context_width % 2:
            raise ValueError(f"context_width: {self.context_width} is odd; a residual unit halves")
        return self

    def scaled(self, width: float, depth: float) -> Self:
        """This network, wider or deeper: all channels in proportion, rounded to 4.

        Residual blocks grow in number in proportion and never fall below 1.
        """
        size = self.band_channels // WECONVENE_SLICES
        return self._scaled(
            width,
            depth,
            {
                "latent_channels": scaled_channels(size, width, 4) * WECONVENE_SLICES * BANDS,
                "hyper_channels": scaled_channels(self.hyper_channels, width, 4),
                "width": scaled_channels(self.width, width, 4),
                "depth": scaled_blocks(self.depth, depth),
                "context_width": scaled_channels(self.context_width, width, 4),
                "net_widths": [scaled_channels(count, width, 4) for count in self.net_widths],
            },
        )
