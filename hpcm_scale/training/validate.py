"""Validation on whole images, exact over any number of ranks."""

import torch
import torch.nn.functional as F
from deepspeed.runtime.engine import DeepSpeedEngine
from torch import Tensor

from hpcm_scale.config import DataConfig
from hpcm_scale.data.stream import read_images
from hpcm_scale.training.loss import RateDistortion, figure_names, psnr


def validate(
    engine: DeepSpeedEngine, data: DataConfig, objective: RateDistortion, rank: int, world: int
) -> dict[str, float]:
    """Averages over the validation images: the objective's figures and "psnr" (8-bit RGB, dB).

    Rates are those of the rounded symbols over the pixels of the unpadded image.
    """
    network = engine.module
    network.eval()
    names = (*figure_names(network.scales), "psnr")
    sums = torch.zeros(len(names) + 1, dtype=torch.float64)
    with torch.no_grad():
        for item in read_images(data, "val", rank, world):
            x = item.image[None].to(engine.device).float() / 255
            padded = pad(x, network.image_multiple)
            output = engine(padded.to(next(network.parameters()).dtype))
            x_hat = output.x_hat[..., : x.shape[-2], : x.shape[-1]]
            figures = objective.per_image(output._replace(x_hat=x_hat), x)[0].double().cpu()
            eight_bit = (x_hat.float().clamp(0, 1) * 255).round() / 255
            quality = psnr((eight_bit - x).square().mean().item())
            # A stand-in image keeps the ranks in step and counts for nothing.
            if item.counted:
                sums += torch.cat([figures, torch.tensor([quality, 1.0], dtype=torch.float64)])
    network.train()
    sums = sums.to(engine.device)
    torch.distributed.all_reduce(sums)
    *values, images = sums.tolist()
    return {name: value / images for name, value in zip(names, values, strict=True)}


def pad(x: Tensor, multiple: int) -> Tensor:
    """(B, C, H, W) with the last rows and columns repeated up to multiples of `multiple`."""
    height, width = x.shape[-2:]
    return F.pad(x, (0, -width % multiple, 0, -height % multiple), mode="replicate")
