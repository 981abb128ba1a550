"""Validation on whole images, exact over any number of ranks."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpcm_scale.config import DataConfig
from hpcm_scale.data.stream import read_images
from hpcm_scale.training.loss import RateDistortion
from hpcm_scale.units import psnr

Show = Callable[[Tensor, Tensor, Tensor], None]
"""Takes an image (3, H, W), its reconstruction, and its bits a latent position (H/16, W/16)."""


def validate(
    network: nn.Module,
    data: DataConfig | str,
    objective: RateDistortion,
    rank: int = 0,
    world: int = 1,
    show: Show | None = None,
    tick: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Averages over the validation images: the objective's figures and "psnr" (8-bit RGB, dB).

    Rates are those of the rounded symbols over the pixels of the unpadded image.

    Args:
        network: a codec network, or a DeepSpeed engine around one; every rank calls with its own.
        data: the set, as `read_images` takes it.
        show: called with the first image of this rank.
        tick: called before each image.
    """
    inner: Any = getattr(network, "module", network)  # of an engine
    was_training = inner.training
    inner.eval()
    names = (*objective.figure_names(inner.scales), "psnr")
    sums = torch.zeros(len(names) + 1, dtype=torch.float64)
    first = next(inner.parameters())
    device, dtype = first.device, first.dtype
    with torch.no_grad():
        for item in read_images(data, "val", rank, world):
            tick()
            x = item.image[None].to(device).float() / 255
            output = network(pad(x, inner.image_multiple).to(dtype), None, show is not None)
            x_hat = output.x_hat[..., : x.shape[-2], : x.shape[-1]]
            if show is not None:
                show(x[0], x_hat[0], output.bit_map[0])
                show = None
            figures = objective.per_image(output._replace(x_hat=x_hat), x)[0].double().cpu()
            eight_bit = (x_hat.float().clamp(0, 1) * 255).round() / 255
            quality = psnr((eight_bit - x).square().mean().item())
            # A stand-in image keeps the ranks in step and counts for nothing.
            if item.counted:
                sums += torch.cat([figures, torch.tensor([quality, 1.0], dtype=torch.float64)])
    inner.train(was_training)
    if world > 1:
        sums = sums.to(device)
        torch.distributed.all_reduce(sums)
    *values, images = sums.tolist()
    return {name: value / images for name, value in zip(names, values, strict=True)}


def pad(x: Tensor, multiple: int) -> Tensor:
    """(B, C, H, W) with the last rows and columns repeated up to multiples of `multiple`."""
    height, width = x.shape[-2:]
    return F.pad(x, (0, -width % multiple, 0, -height % multiple), mode="replicate")
