"""Maps of a picture: bits spent and errors made, by place."""

import numpy as np
import torch
from matplotlib import colormaps
from torch import Tensor

from hpcm_scale.codec.engines.torch_engine import TorchTransforms, dense
from hpcm_scale.codec.tiled_transforms import analyse
from hpcm_scale.codec.tiles import HYPER, LATENT
from hpcm_scale.models.codec_network import CodecNetwork


@torch.inference_mode()
def bit_map(network: CodecNetwork, pixels: np.ndarray, memory: int) -> np.ndarray:
    """Bits that every 16×16 block of a picture costs, by the model's densities.

    A hyper-latent's bits are spread evenly over the 4×4 blocks it stands for.

    Args:
        pixels: (H, W, 3) uint8.
        memory: bytes the transforms may work in, about.

    Returns:
        (⌈H/16⌉, ⌈W/16⌉) bits.
    """
    y = analyse(TorchTransforms(network), pixels, memory)
    z_hat, z_bits, _ = network.z_prior(network.h_a(y), None)
    targets = network.partition.split(y)
    rates: list[Tensor] = []

    def code(step: int, scale: Tensor, mean: Tensor) -> Tensor:
        symbols = (targets[step] - mean).round()
        rates.append(network.density.bits(symbols, scale))
        return symbols + mean

    network.code_steps(network.h_s(dense(z_hat)), code)
    spread = z_bits.sum(1).repeat_interleave(HYPER, 1).repeat_interleave(HYPER, 2) / HYPER**2
    total = (network.partition.join(rates).sum(1) + spread)[0]
    rows, columns = (-(-side // LATENT) for side in pixels.shape[:2])
    return total[:rows, :columns].cpu().numpy()


def error_map(original: np.ndarray, reconstruction: np.ndarray) -> np.ndarray:
    """(H, W) float: mean absolute error over R, G and B, in levels of 255."""
    return np.abs(original.astype(np.int16) - reconstruction).mean(axis=2)


def coloured(values: np.ndarray, high: float, colours: str) -> np.ndarray:
    """(H, W) values from 0 to `high` as (H, W, 3) uint8, by a colour map of matplotlib."""
    return (colormaps[colours](np.clip(values / high, 0, 1))[..., :3] * 255).astype(np.uint8)
