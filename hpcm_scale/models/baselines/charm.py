"""CHARM*: channel-wise autoregression with latent residual prediction, on Base's transforms.

Source: Minnen and Singh, arXiv 2007.08739, as the baseline of arXiv 2507.19125.
"""

import torch
from torch import Tensor, nn

from hpcm_scale.config import CHARM_SLICES, HpcmConfig
from hpcm_scale.models.codec_network import Code, CodecNetwork
from hpcm_scale.models.density import ZPrior
from hpcm_scale.models.slices import SlicePartition
from hpcm_scale.models.transforms import (
    ModuleCall,
    analysis,
    call,
    hyper_analysis,
    hyper_synthesis,
    synthesis,
)

SUPPORT = 5
"""How many slices, the first ones coded, a later slice reads at most."""


class TwinHyperSynthesis(nn.Module):
    """Two nets of the same shape, of M outputs each, for what scales and what means build on."""

    def __init__(self, config: HpcmConfig) -> None:
        super().__init__()
        self.scale = hyper_synthesis(config, config.latent_channels)
        self.mean = hyper_synthesis(config, config.latent_channels)

    def forward(self, z_hat: Tensor, run: ModuleCall = call) -> Tensor:
        """ẑ (B, N, h/4, w/4) -> (scale | mean) features (B, 2M, h, w)."""
        return torch.cat([self.scale(z_hat, run), self.mean(z_hat, run)], dim=1)


def _slice_net(inputs: int, latent_channels: int) -> nn.Sequential:
    """(B, inputs, h, w) -> (B, M/10, h, w) through 7M/10 and 4M/10 channels: 224, 128, 32."""
    unit = latent_channels // CHARM_SLICES
    return nn.Sequential(
        nn.Conv2d(inputs, 7 * unit, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(7 * unit, 4 * unit, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(4 * unit, unit, 3, padding=1),
    )


class Charm(CodecNetwork[HpcmConfig, SlicePartition]):
    """The codec network of one `HpcmConfig` with architecture "charm".

    The reading built, where the papers leave a choice: ten slices of M/10 channels; slice i reads
    the first min(i, 5) slices; its scale net takes the M scale features of the hyperprior and
    those slices, its mean net the M mean features and those slices, its residual net what the
    mean net takes and the slice itself; each net has three 3×3 convolutions (arXiv 2007.08739 has
    5×5 in the first two) with ReLU between them; the residual is ½·tanh of its net. It counts
    58.533 M parameters and 495.72 kMACs/pixel (`hpcm-scale info charm`); arXiv 2507.19125 prints
    58.53 M and 495.75. Four or six slices read would give
    57.57 or 59.31 M, one h_s for both 58.34 M, 5×5 convolutions 119.89 M.
    """

    def __init__(self, config: HpcmConfig) -> None:
        m, unit = config.latent_channels, config.latent_channels // CHARM_SLICES
        super().__init__(
            config,
            SlicePartition([unit] * CHARM_SLICES),
            g_a=analysis(config),
            g_s=synthesis(config),
            h_a=hyper_analysis(config),
            h_s=TwinHyperSynthesis(config),
            z_prior=ZPrior(config.hyper_channels),
        )
        inputs = [m + unit * min(k, SUPPORT) for k in range(CHARM_SLICES)]
        self.scale_nets = nn.ModuleList(_slice_net(count, m) for count in inputs)
        self.mean_nets = nn.ModuleList(_slice_net(count, m) for count in inputs)
        self.residual_nets = nn.ModuleList(_slice_net(count + unit, m) for count in inputs)

    def code_steps(self, params: Tensor, code: Code) -> Tensor:
        """Walk the coding steps.

        Args:
            params: h_s(ẑ) (B, 2M, h, w): the scale features, then the mean features.
            code: called once a slice with its scale and mean; returns symbol + mean, to which the
                predicted residual is added here.

        Returns:
            ŷ (B, M, h, w), residuals included.
        """
        scale_features, mean_features = params.chunk(2, dim=1)
        refined: list[Tensor] = []
        nets = zip(self.scale_nets, self.mean_nets, self.residual_nets, strict=True)
        for k, (scale_net, mean_net, residual_net) in enumerate(nets):
            support = refined[:SUPPORT]
            mean_inputs = torch.cat([mean_features, *support], dim=1)
            scale = self.run(scale_net, torch.cat([scale_features, *support], dim=1))
            coded = code(k, scale, self.run(mean_net, mean_inputs))
            residual = self.run(residual_net, torch.cat([mean_inputs, coded], dim=1))
            refined.append(coded + 0.5 * residual.tanh())
        return self.partition.join(refined)
