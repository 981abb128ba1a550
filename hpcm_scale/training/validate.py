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

    Rates are those of the rounded symbols over the pixels of the unpadded image. A network of many
    rates is validated at each, and the averages are over them too; "loss", "bpp" and "psnr" of each
    have its λ in their names: "bpp_0.013".

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
    rates = objective.rates
    first = next(inner.parameters())
    device, dtype = first.device, first.dtype
    # Of each rate a row, or the one row of a network of one rate.
    sums = torch.zeros(max(1, len(rates)), len(names) + 1, dtype=torch.float64)
    with torch.no_grad():
        for item in read_images(data, "val", rank, world):
            tick()
            x = item.image[None].to(device).float() / 255
            padded = pad(x, inner.image_multiple).to(dtype)
            for number, row in enumerate(sums):
                place = torch.tensor([float(number)], device=device) if rates else None
                output = network(padded, None, show is not None, place)
                x_hat = output.x_hat[..., : x.shape[-2], : x.shape[-1]]
                if show is not None:
                    show(x[0], x_hat[0], output.bit_map[0])
                    show = None
                figures = objective.per_image(output._replace(x_hat=x_hat), x, place)[0]
                eight_bit = (x_hat.float().clamp(0, 1) * 255).round() / 255
                quality = psnr((eight_bit - x).square().mean().item())
                # A stand-in image keeps the ranks in step and counts for nothing.
                if item.counted:
                    row += torch.cat(
                        [figures.double().cpu(), torch.tensor([quality, 1.0], dtype=torch.float64)]
                    )
    inner.train(was_training)
    if world > 1:
        sums = sums.to(device)
        torch.distributed.all_reduce(sums)
    means = (sums[:, :-1] / sums[:, -1:]).cpu()
    averages = dict(zip(names, means.mean(0).tolist(), strict=True))
    for lmbda, row in zip(rates, means.tolist(), strict=False):
        at_rate = dict(zip(names, row, strict=True))
        averages |= {f"{name}_{lmbda:g}": at_rate[name] for name in ("loss", "bpp", "psnr")}
    return averages


def pad(x: Tensor, multiple: int) -> Tensor:
    """(B, C, H, W) with the last rows and columns repeated up to multiples of `multiple`."""
    height, width = x.shape[-2:]
    return F.pad(x, (0, -width % multiple, 0, -height % multiple), mode="replicate")
