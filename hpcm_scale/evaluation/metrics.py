"""Distance of a reconstruction from its original: PSNR and MS-SSIM of 8-bit RGB."""

import math

import numpy as np
import torch
from pytorch_msssim import ms_ssim as _ms_ssim

LEAST_SIDE = 161
"""Shorter sides are too small for MS-SSIM's five scales of an 11-tap window."""


def ms_ssim(original: np.ndarray, reconstruction: np.ndarray) -> float | None:
    """MS-SSIM (Wang et al. 2003) of two uint8 arrays (H, W, 3), the mean over R, G and B.

    None where a side is below `LEAST_SIDE`; exactly 1 for equal ones.
    """
    if min(original.shape[:2]) < LEAST_SIDE:
        return None
    if np.array_equal(original, reconstruction):
        return 1.0
    # In double precision: at high quality 1 − MS-SSIM is what counts, and it is small.
    x, y = (
        torch.tensor(array).permute(2, 0, 1)[None].double() for array in (original, reconstruction)
    )
    return float(_ms_ssim(x, y, data_range=255))


def decibels(similarity: float | None) -> float | None:
    """MS-SSIM in dB, −10 log10(1 − x); infinite for 1, None for None."""
    if similarity is None:
        return None
    return -10 * math.log10(1 - similarity) if similarity < 1 else math.inf
