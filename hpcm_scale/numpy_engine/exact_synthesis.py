"""g_s in exact arithmetic: the layers of the entropy path, and a last one that gives pixels."""

import numpy as np

from hpcm_scale.config.model import HpcmConfig
from hpcm_scale.entropy.exact.grid import GRID
from hpcm_scale.entropy.exact.pixels import (
    COLOUR_FACTOR,
    GREY_DIVISOR,
    GREY_FACTOR,
    LARGEST_LATENT,
    LEVELS,
    STRIDE,
    pixel_weights,
)
from hpcm_scale.numpy_engine import exact_layers as exact
from hpcm_scale.numpy_engine.exact_product import requantize
from hpcm_scale.numpy_engine.parameters import Parameters
from hpcm_scale.numpy_engine.threads import parallel_for
from hpcm_scale.numpy_engine.windows import bordered, strips


def grid_latents(y_hat: np.ndarray, inverse_gain: np.ndarray | None) -> np.ndarray:
    """ŷ (h, w, M) float32 as what the exact g_s takes, divided by the gains of its rate.

    Args:
        inverse_gain: (M,) float64; None of a model of one rate.
    """
    x = y_hat * np.float32(GRID)
    if inverse_gain is not None:
        np.clip(x, -LARGEST_LATENT, LARGEST_LATENT, out=x)
        x = x * inverse_gain
    return requantize(x).astype(np.float32, copy=False)


class Synthesis:
    """g_s of an HPCM network, exact.

    Args:
        p: with the parameters of g_s, of arithmetic 1.

    Raises:
        CheckpointError: if its parameters could make a sum overflow.
    """

    def __init__(self, config: HpcmConfig, p: Parameters) -> None:
        channels = (3, *config.widths, config.latent_channels)
        self._layers = exact.Sequence()
        for stage, level in enumerate((3, 2, 1, 0)):
            width, depth = channels[level + 1], config.synthesis_depths[level]
            self._layers += [
                exact.PConvRB(p, f"g_s.{stage}.{i}", width, config.partial_ratio, config.expansion)
                for i in range(depth)
            ]
            if level:
                self._layers.append(exact.Up(p, f"g_s.{stage}.{depth}", width, channels[level]))
        kernel = config.outer_kernel
        name = f"g_s.3.{config.synthesis_depths[0]}"
        weight = p.take(f"{name}.weight", config.widths[0], 3, kernel, kernel)
        self._last = pixel_weights(weight, p.take(f"{name}.bias", 3), name)

    def pixels(self, x: np.ndarray, grey: bool) -> np.ndarray:
        """Grid latents (h, w, M) -> 8-bit pixels (16h, 16w, 3), or (16h, 16w)."""
        x = self._layers(x)
        h, w, c = x.shape
        weight, bias, offsets = self._last
        reach = int(offsets.max())
        places = weight.shape[:5]  # (2, 2, T, T, 3)
        matrix = weight.reshape(-1, c)
        out = np.empty((h, STRIDE, w, STRIDE) if grey else (h, STRIDE, w, STRIDE, 3), np.uint8)

        def work(part: slice) -> None:
            around = bordered(x, part, reach, np.float64)
            r = part.stop - part.start
            # What each position adds to the pixels around it, plane by plane.
            products = matrix @ around.reshape(-1, c).T
            products = products.reshape(*places, *around.shape[:2])
            for a, b in np.ndindex(STRIDE, STRIDE):
                sums = np.broadcast_to(bias[a, b][:, None, None], (3, r, w)).copy()
                for i, j in np.ndindex(*places[2:4]):
                    down, right = reach + offsets[a, i], reach + offsets[b, j]
                    sums += products[a, b, i, j, :, down : down + r, right : right + w]
                out[part, a, :, b] = levels(sums, grey)

        parallel_for(work, strips(h, w, len(matrix)))
        return out.reshape(STRIDE * h, STRIDE * w, *out.shape[4:])


def levels(sums: np.ndarray, grey: bool) -> np.ndarray:
    """Sums (3, r, w) in grid points as levels (r, w, 3), or (r, w): the mean of the channels."""
    if grey:
        sums = np.rint(sums * GREY_FACTOR).sum(axis=0, keepdims=True) / GREY_DIVISOR
    else:
        sums *= COLOUR_FACTOR
    np.rint(sums, out=sums)
    pixels = np.clip(sums, 0, LEVELS, out=sums).astype(np.uint8)
    return pixels[0] if grey else pixels.transpose(1, 2, 0)
