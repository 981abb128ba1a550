"""Random crops, keyed by sample: the number of ranks and workers does not change them."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Crop:
    """A square of `side` pixels with its corner at (left, top), mirrored left to right or not."""

    left: int
    top: int
    side: int
    mirrored: bool

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(left, top, right, bottom), as Pillow has it."""
        return self.left, self.top, self.left + self.side, self.top + self.side


def random_crop(
    width: int, height: int, side: int, flips: bool, seed: int, epoch: int, sample: int
) -> Crop:
    """The crop of an image for one (seed, epoch, sample), uniform over all places.

    Args:
        width, height: of the image, in pixels, both at least `side`.
    """
    rng = np.random.default_rng((seed, epoch, sample))
    left = int(rng.integers(width - side + 1))
    top = int(rng.integers(height - side + 1))
    return Crop(left, top, side, mirrored=flips and bool(rng.integers(2)))
