"""The configuration of ELIC."""

from typing import Literal, Self

from pydantic import model_validator

from hpcm_scale.config.model import ModelConfig, scaled_blocks, scaled_channels
from hpcm_scale.config.strict import Positive

GROUP_MULTIPLE = 4
"""Divides a scaled group's channels."""


class ElicConfig(ModelConfig):
    """ELIC (arXiv 2203.10886). The defaults are the size that the HPCM papers compare with."""

    name: str = "elic"
    architecture: Literal["elic"] = "elic"  # pyright: ignore[reportIncompatibleVariableOverride] frozen
    """The kind of network."""
    latent_channels: Positive = 320
    """M, channels of the latents y: the sum of the groups."""
    hyper_channels: Positive = 192
    groups: tuple[Positive, ...] = (16, 16, 32, 64, 192)
    """Channels of each group of the latents, in coding order."""
    width: Positive = 192
    """N, channels of g_a, g_s and h_a; even."""
    depth: Positive = 3
    """Residual blocks after each resampling but the last of g_a and of g_s."""
    attention_depth: Positive = 3
    """Residual units of either branch of an attention block."""
    synthesis_widths: tuple[Positive, Positive] = (320, 480)
    """Channels between the resamplings of h_s."""
    context_widths: tuple[Positive, Positive] = (224, 128)
    """Channels between the convolutions of a channel context."""

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if sum(self.groups) != self.latent_channels:
            raise ValueError(
                f"groups: {self.groups} are {sum(self.groups)} channels, latent_channels is "
                f"{self.latent_channels}"
            )
        for field in ("width", "latent_channels"):
            if getattr(self, field) % 2:
                raise ValueError(f"{field}: {getattr(self, field)} is odd; a residual unit halves")
        return self

    def scaled(self, width: float, depth: float) -> Self:
        """This network, wider or deeper: all channels in proportion, groups rounded to 4.

        Residual blocks and units grow in number in proportion and never fall below 1.
        """
        groups = [scaled_channels(count, width, GROUP_MULTIPLE) for count in self.groups]
        return self._scaled(
            width,
            depth,
            {
                "groups": groups,
                "latent_channels": sum(groups),
                "hyper_channels": scaled_channels(self.hyper_channels, width, 4),
                "width": scaled_channels(self.width, width, 4),
                "depth": scaled_blocks(self.depth, depth),
                "attention_depth": scaled_blocks(self.attention_depth, depth),
                "synthesis_widths": [scaled_channels(n, width, 4) for n in self.synthesis_widths],
                "context_widths": [scaled_channels(n, width, 4) for n in self.context_widths],
            },
        )
