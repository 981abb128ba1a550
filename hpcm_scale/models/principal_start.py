"""A start for narrow networks: transforms that keep principal components, instead of random ones.

A stage of g_a turns 2×2 positions into their leading principal components, over crops of the
training data; g_s turns them back; residual branches begin at zero. The network begins as a block
transform coder, whose reconstruction random weights take an hour of training to reach.
"""

import torch
from torch import Tensor, nn

from hpcm_scale.errors import ConfigError
from hpcm_scale.models.blocks.resampling import Conv1x1, Up2x2
from hpcm_scale.models.blocks.residual import ResidualPair
from hpcm_scale.models.hpcm import HPCM

STEP = 0.02
"""Quantisation step that suits λ = 1 at high rate, of an orthonormal transform of values in [0, 1]:
λ·255²·Δ²/12 of distortion against log₂(1/Δ) bits of each of three values a pixel."""


def check_suits(network: nn.Module) -> None:
    """
    Raises:
        ConfigError: if the network's transforms are not HPCM's.
    """
    if not isinstance(network, HPCM):
        kind = type(network).__name__
        raise ConfigError(
            f"initial_weights: principal_components are a start for HPCM, not for {kind}"
        )


def start_from_principal_components(network: nn.Module, crops: Tensor, lmbda: float) -> None:
    """Give g_a and g_s such weights, and the context model scales of the size of the latents.

    Args:
        crops: (n, 3, H, W) in [0, 1].
        lmbda: λ whose quantisation step is 1 in the latents; of a network of many rates, the λ at
            which its gains are 1.

    Raises:
        ConfigError: if the network's transforms are not HPCM's.
    """
    if not isinstance(network, HPCM):
        raise ConfigError(
            f"principal components: are a start for HPCM, not for {type(network).__name__}"
        )
    parts = (network.g_a, network.g_s, list(network.h_s.children())[-1])
    for module in [module for part in parts for module in part.modules()]:
        if isinstance(module, ResidualPair):
            for parameter in (module.project_weight, module.project_bias):
                assert parameter is not None  # pairs of HPCM have biases
                nn.init.zeros_(parameter)
    scale = lmbda**0.5 / STEP
    x = crops
    downs = [module for module in network.g_a.modules() if isinstance(module, nn.Conv2d)]
    downs = [module for module in downs if module.stride == (2, 2)]
    ups = [module for module in network.g_s.modules() if isinstance(module, nn.ConvTranspose2d)]
    with torch.no_grad():
        for i, (down, up) in enumerate(zip(downs, reversed(ups), strict=True)):
            x = _keep_components(down, up, x, scale if i == len(downs) - 1 else 1.0)
        spread = x.std(dim=(0, 2, 3))
        for part in (network.h_s, network.shared_s12, network.shared_s3):
            # (scale | mean) of the latents, but for blocks behind it that begin as the identity.
            bias = _last_that_resizes(part).bias
            assert bias is not None  # resamplings and 1×1 convolutions have one
            bias[: len(spread)], bias[len(spread) :] = spread, 0


def _keep_components(down: nn.Conv2d, up: nn.ConvTranspose2d, x: Tensor, factor: float) -> Tensor:
    """Set one stage's pair of resamplings: (n, I, 2h, 2w) -> what `down` now gives (n, O, h, w)."""
    n, c, h, w = x.shape
    blocks = x.reshape(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(-1, 4 * c)
    mean = blocks.double().mean(0)
    values, vectors = torch.linalg.eigh(torch.cov((blocks - mean).double().t()))
    kept = min(down.out_channels, 4 * c)
    basis = vectors[:, values.argsort(descending=True)[:kept]].t().to(x.dtype)  # (kept, 4I)
    # Where there are more channels than components, the others begin at zero.
    inner = (down.kernel_size[0] - 2) // 2
    place = (slice(None, kept), slice(None), slice(inner, inner + 2), slice(inner, inner + 2))
    for layer, weight in ((down, basis * factor), (up, basis / factor)):
        layer.weight.zero_()
        layer.weight[place] = weight.view(kept, c, 2, 2)
    assert down.bias is not None
    assert up.bias is not None
    down.bias.zero_()
    down.bias[:kept] = -(basis @ mean.to(x.dtype)) * factor
    up.bias.copy_(mean.view(c, 4).mean(1))
    out = x.new_zeros(n, down.out_channels, h // 2, w // 2)
    kept_values = (blocks - mean.to(x.dtype)) @ basis.t() * factor
    out[:, :kept] = kept_values.view(n, h // 2, w // 2, kept).permute(0, 3, 1, 2)
    return out


def _last_that_resizes(part: nn.Module) -> Conv1x1 | Up2x2:
    return [module for module in part.modules() if isinstance(module, Conv1x1 | Up2x2)][-1]
