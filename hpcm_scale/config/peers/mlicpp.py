"""The configuration of MLIC++."""

from typing import Literal, Self

from pydantic import model_validator

from hpcm_scale.config.model import ModelConfig, scaled_blocks, scaled_channels
from hpcm_scale.config.strict import Positive

SLICE_MULTIPLE = 4
"""Divides a slice's channels: the widths of its nets step by a quarter of it."""


class MlicppConfig(ModelConfig):
    """MLIC++ (arXiv 2307.15421). The defaults are the papers' network."""

    name: str = "mlicpp"
    architecture: Literal["mlicpp"] = "mlicpp"  # pyright: ignore[reportIncompatibleVariableOverride] frozen
    """The kind of network."""
    latent_channels: Positive = 320
    """M, channels of the latents y; a multiple of four times the slices."""
    hyper_channels: Positive = 192
    slices: Positive = 10
    """Equal slices of the latent channels, coded one after the other."""
    width: Positive = 192
    """N, channels of g_a, g_s and h_a."""
    depth: Positive = 1
    """Residual blocks at each resolution of g_a and of g_s."""
    release: Literal["2023", "2024"] = "2023"
    """Which of the program's two networks: the papers', or the smaller one that replaced it."""

    @property
    def slice_channels(self) -> int:
        """Channels of a slice."""
        return self.latent_channels // self.slices

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.latent_channels % (SLICE_MULTIPLE * self.slices):
            raise ValueError(
                f"latent_channels: {self.latent_channels} is not a multiple of "
                f"{SLICE_MULTIPLE * self.slices} ({self.slices} slices of a multiple of "
                f"{SLICE_MULTIPLE})"
            )
        return self

    def scaled(self, width: float, depth: float) -> Self:
        """This network, wider or deeper: all channels in proportion, those of a slice rounded to 4.

        The widths of the context model follow the slice's; residual blocks grow in number.
        """
        unit = scaled_channels(self.slice_channels, width, SLICE_MULTIPLE)
        return self._scaled(
            width,
            depth,
            {
                "latent_channels": unit * self.slices,
                "hyper_channels": scaled_channels(self.hyper_channels, width, 4),
                "width": scaled_channels(self.width, width, 4),
                "depth": scaled_blocks(self.depth, depth),
            },
        )
