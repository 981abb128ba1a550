"""The configuration of LALIC."""

from typing import Literal, Self

from pydantic import model_validator

from hpcm_scale.config.model import ModelConfig, scaled_blocks, scaled_channels
from hpcm_scale.config.strict import Positive

GROUP_MULTIPLE = 4
"""Divides a scaled group's channels."""


class LalicConfig(ModelConfig):
    """LALIC (arXiv 2502.05741). The defaults are the published network."""

    name: str = "lalic"
    architecture: Literal["lalic"] = "lalic"  # pyright: ignore[reportIncompatibleVariableOverride] frozen
    """The kind of network."""
    latent_channels: Positive = 320
    """M, channels of the latents y: the sum of the groups."""
    hyper_channels: Positive = 192
    groups: tuple[Positive, ...] = (16, 16, 32, 64, 192)
    """Channels of each group of the latents, in coding order."""
    widths: tuple[Positive, Positive, Positive] = (96, 144, 256)
    """Channels of g_a and g_s at 1/2, 1/4 and 1/8 of the image side."""
    depths: tuple[Positive, Positive, Positive] = (2, 4, 6)
    """RWKV blocks of g_a and of g_s at each of the three widths."""
    hyper_width: Positive = 256
    """Channels of h_a and h_s at 1/32 of the image side."""
    hyper_depth: Positive = 6
    """RWKV blocks of h_a and of h_s."""
    expansion: Positive = 4
    """m: hidden channels of a block's channel mixing over its channels."""
    context_width: Positive = 320
    """Channels of a channel context."""
    context_depth: Positive = 2
    """RWKV blocks of a channel context."""
    context_expansion: Positive = 8
    """m of the blocks of a channel context."""
    least_parameter_width: Positive = 256
    """Fewest channels inside an entropy parameter net, whose widths step down in thirds."""
    wkv: Literal["published", "textbook"] = "textbook"
    """How tokens are weighted: as by the released kernel, which imported weights need, or by the
    formula."""

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if sum(self.groups) != self.latent_channels:
            raise ValueError(
                f"groups: {self.groups} are {sum(self.groups)} channels, latent_channels is "
                f"{self.latent_channels}"
            )
        return self

    def scaled(self, width: float, depth: float) -> Self:
        """This network, wider or deeper: all channels in proportion, rounded to 4.

        RWKV blocks grow in number in proportion and never fall below 1; what hidden channels are to
        a block's channels stays.
        """
        groups = [scaled_channels(count, width, GROUP_MULTIPLE) for count in self.groups]
        return self._scaled(
            width,
            depth,
            {
                "groups": groups,
                "latent_channels": sum(groups),
                "hyper_channels": scaled_channels(self.hyper_channels, width, 4),
                "widths": [scaled_channels(count, width, 4) for count in self.widths],
                "depths": [scaled_blocks(count, depth) for count in self.depths],
                "hyper_width": scaled_channels(self.hyper_width, width, 4),
                "hyper_depth": scaled_blocks(self.hyper_depth, depth),
                "context_width": scaled_channels(self.context_width, width, 4),
                "context_depth": scaled_blocks(self.context_depth, depth),
                "least_parameter_width": scaled_channels(self.least_parameter_width, width, 4),
            },
        )
