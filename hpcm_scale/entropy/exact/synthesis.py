"""g_s in exact arithmetic in torch: layers of the entropy path, and a last that gives pixels."""

import numpy as np
import torch
from torch import Tensor, nn

from hpcm_scale.entropy.exact.grid import GRID, divide, requantize
from hpcm_scale.entropy.exact.layers import ExactPConvRB, ExactUp
from hpcm_scale.entropy.exact.neighbourhoods import bordered, strips
from hpcm_scale.entropy.exact.pixels import (
    COLOUR_FACTOR,
    GREY_DIVISOR,
    GREY_FACTOR,
    LARGEST_LATENT,
    LEVELS,
    STRIDE,
    pixel_weights,
)
from hpcm_scale.errors import CheckpointError
from hpcm_scale.models.blocks.resampling import Up2x2
from hpcm_scale.models.blocks.residual import PConvRB

_LAYERS = {PConvRB: ExactPConvRB, Up2x2: ExactUp}


def grid_latents(y_hat: Tensor, inverse_gain: np.ndarray | None) -> Tensor:
    """ŷ (1, M, h, w) float32 as what the exact g_s takes, divided by the gains of its rate.

    Args:
        inverse_gain: (M,) float64; None of a model of one rate.
    """
    x = y_hat * GRID
    if inverse_gain is not None:
        gain = torch.from_numpy(inverse_gain).to(x.device)
        x = x.clamp_(-LARGEST_LATENT, LARGEST_LATENT).double().mul_(gain[:, None, None])
    return requantize(x).float()


class ExactSynthesis:
    """g_s, exact.

    Args:
        g_s: stages of layers; what ends the last doubles the sides and gives three channels.

    Raises:
        CheckpointError: if it has a layer without exact arithmetic, or parameters that could make a
            sum overflow.
    """

    def __init__(self, g_s: nn.Module) -> None:
        stages = g_s.named_children()
        named = [(f"g_s.{s}.{i}", layer) for s, x in stages for i, layer in x.named_children()]
        *inner, (name, last) = named or [("g_s", g_s)]
        for layer, module in inner:
            if type(module) not in _LAYERS:
                raise CheckpointError(_refusal(layer, module))
        if not _gives_pixels(last):
            raise CheckpointError(_refusal(name, last))
        self._layers = [_LAYERS[type(module)](module, layer) for layer, module in inner]
        assert isinstance(last, nn.ConvTranspose2d)  # `_gives_pixels`
        assert last.bias is not None
        weight, bias = (p.detach().cpu().numpy() for p in (last.weight, last.bias))
        found = pixel_weights(weight, bias, name)
        self._weight, self._bias = (
            torch.from_numpy(array).to(last.weight.device) for array in found[:2]
        )
        self._offsets = found.offsets

    def pixels(self, x: Tensor, grey: bool) -> np.ndarray:
        """Grid latents (1, M, h, w) -> 8-bit pixels (16h, 16w, 3), or (16h, 16w)."""
        for layer in self._layers:
            x = layer(x)
        v = x.permute(0, 2, 3, 1)
        h, w, c = v.shape[1:]
        reach = int(self._offsets.max())
        matrix = self._weight.flatten(0, 4)
        shape = (h, STRIDE, w, STRIDE) if grey else (h, STRIDE, w, STRIDE, 3)
        out = torch.empty(shape, dtype=torch.uint8, device=v.device)
        for part in strips(v, taps=len(matrix) // c + 1):
            around, rows = bordered(v, part, reach), part[1]
            r = rows.stop - rows.start
            # What each position adds to the pixels around it, plane by plane.
            products = matrix @ around.flatten(0, 1).double().T
            products = products.view(*self._weight.shape[:5], *around.shape[:2])
            for a, b in np.ndindex(STRIDE, STRIDE):
                sums = self._bias[a, b][:, None, None].expand(3, r, w).clone()
                for i, j in np.ndindex(self._weight.shape[2:4]):
                    down, right = reach + self._offsets[a, i], reach + self._offsets[b, j]
                    sums += products[a, b, i, j, :, down : down + r, right : right + w]
                out[rows, a, :, b] = _levels(sums, grey)
        return out.view(STRIDE * h, STRIDE * w, *shape[4:]).cpu().numpy()


def _levels(sums: Tensor, grey: bool) -> Tensor:
    """Sums (3, r, w) in grid points as levels (r, w, 3), or (r, w): the mean of the channels."""
    if grey:
        sums = divide(sums.mul_(GREY_FACTOR).round_().sum(0, keepdim=True), GREY_DIVISOR)
    else:
        sums = sums.mul_(COLOUR_FACTOR)
    pixels = sums.round_().clamp_(0, LEVELS).to(torch.uint8)
    return pixels[0] if grey else pixels.permute(1, 2, 0)


def _gives_pixels(layer: nn.Module) -> bool:
    """Whether a layer is a transposed convolution that `pixel_weights` describes."""
    if not isinstance(layer, nn.ConvTranspose2d) or layer.bias is None:
        return False
    side = layer.kernel_size[0]
    form = (layer.kernel_size, layer.stride, layer.padding, layer.output_padding, layer.groups)
    wanted = ((side, side), (STRIDE,) * 2, (side // 2 - 1,) * 2, (0, 0), 1)
    return side % 2 == 0 and form == wanted and layer.out_channels == 3


def _refusal(name: str, module: nn.Module) -> str:
    return f"its {name} ({type(module).__name__}) has no exact arithmetic, so pixels have none"
