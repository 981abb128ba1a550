"""Integer coding tables: made once, when a model is exported, and never recomputed to decode.

A table gives the symbols −r..r, and one escape symbol for everything beyond, frequencies that are
integers summing to 2^24, the coder's total. Density: generalised Gaussian of shape 1.5 (arXiv
2507.19125), in float64; y has one table per interval of scales, z one per hyper channel.
"""

import hashlib
import math
from dataclasses import dataclass
from typing import Self

import numpy as np
from scipy.special import gammaincc, gammaincinv

from hpcm_scale.errors import CheckpointError

SHAPE = 1.5
"""β of the generalised Gaussian."""
SCALE_BOUND = 0.12
"""Smallest scale there is a table for; smaller ones are coded as this one."""
LARGEST_SCALE = 64.0
"""Scale of the last y table; larger ones are coded as this one."""
SCALES = 60
"""y tables, log-spaced between the two."""
LARGEST_Z_SCALE = 1024.0
"""Learned z scales beyond are coded with this one, which keeps a table under 2^14 symbols."""
TAIL = 1e-6
"""Mass a table leaves to its escape symbol, both tails together."""
PRECISION = 24
"""log2 of what a table's frequencies sum to."""
TOTAL = 1 << PRECISION


@dataclass(frozen=True)
class TableSet:
    """Tables of symbols −r..r and an escape, one after the other."""

    ranges: np.ndarray
    """(T,) int32: r of each table."""
    frequencies: np.ndarray
    """(Σ 2r + 2,) int32: symbols −r..r of table 0, its escape symbol, table 1, ..."""

    def __post_init__(self) -> None:
        for name, array in (("ranges", self.ranges), ("frequencies", self.frequencies)):
            if array.dtype != np.int32 or array.ndim != 1:
                raise CheckpointError(
                    f"coding tables: {name} are {array.dtype} of shape {array.shape}, "
                    "not a list of int32; export the model again"
                )
        sizes = 2 * self.ranges.astype(np.int64) + 2
        if not sizes.size or sizes.min() < 2 or sizes.sum() != self.frequencies.size:
            raise CheckpointError(
                "coding tables: ranges and frequencies disagree; export the model again"
            )
        sums = np.add.reduceat(self.frequencies.astype(np.int64), self.starts[:-1])
        if self.frequencies.min() < 1 or (sums != TOTAL).any():
            raise CheckpointError(
                f"coding tables: a table's frequencies are not positive integers of sum {TOTAL}; "
                "export the model again"
            )

    @property
    def starts(self) -> np.ndarray:
        """(T + 1,) int64: where each table begins in `frequencies`, then where the last ends."""
        return np.concatenate([[0], np.cumsum(2 * self.ranges.astype(np.int64) + 2)])

    def least_bits(self) -> np.ndarray:
        """(T,) float64: what the likeliest symbol of each table costs."""
        largest = np.maximum.reduceat(self.frequencies, self.starts[:-1])
        return PRECISION - np.log2(largest)


@dataclass(frozen=True)
class Tables:
    """Everything that turns symbols into bits, frozen."""

    boundaries: np.ndarray
    """(59,) float32, ascending: a latent's table is the number of boundaries below its scale."""
    y: TableSet
    """One table per interval of scales."""
    z: TableSet
    """One table per hyper channel."""

    def __post_init__(self) -> None:
        if (
            self.boundaries.dtype != np.float32
            or self.boundaries.shape != (len(self.y.ranges) - 1,)
            or not np.isfinite(self.boundaries).all()
            or not (np.diff(self.boundaries) > 0).all()
            or len(self.y.ranges) > 256  # indices are bytes
        ):
            raise CheckpointError(
                "coding tables: the scale boundaries are not finite, ascending float32, one fewer "
                "than the tables of y; export the model again"
            )

    def arrays(self) -> dict[str, np.ndarray]:
        """The tables as named arrays, as they are stored."""
        return {
            "y.boundaries": self.boundaries,
            "y.ranges": self.y.ranges,
            "y.frequencies": self.y.frequencies,
            "z.ranges": self.z.ranges,
            "z.frequencies": self.z.frequencies,
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> Self:
        """The inverse of `arrays`.

        Raises:
            CheckpointError: if an array is missing or they do not make tables.
        """
        try:
            return cls(
                arrays["y.boundaries"],
                TableSet(arrays["y.ranges"], arrays["y.frequencies"]),
                TableSet(arrays["z.ranges"], arrays["z.frequencies"]),
            )
        except KeyError as error:
            raise CheckpointError(
                f"coding tables: {error.args[0]} is missing; export the model again"
            ) from None

    def digest(self) -> str:
        """SHA-256 of the arrays' names, shapes and little-endian values, in hexadecimal."""
        sha = hashlib.sha256()
        for name, array in self.arrays().items():
            sha.update(f"{name} {array.shape} ".encode())
            sha.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
        return sha.hexdigest()


def scale_levels() -> np.ndarray:
    """(60,) float64, log-spaced 0.12..64: the largest scale that each y table serves."""
    return np.exp(np.linspace(math.log(SCALE_BOUND), math.log(LARGEST_SCALE), SCALES))


def build_tables(z_scale: np.ndarray) -> Tables:
    """Freeze the coding tables of a model.

    Args:
        z_scale: (N,) learned scale of each hyper channel.

    Raises:
        CheckpointError: if a scale is not a finite number.
    """
    finite = np.isfinite(z_scale)
    if not finite.all():
        raise CheckpointError(
            f"z_prior.scale: channel {int(np.argmin(finite))} is not a finite number; the training "
            "diverged, export an earlier checkpoint"
        )
    levels = scale_levels()
    # The middle of the scales a table serves: a quarter of the loss of their largest.
    middles = np.append(levels[0], np.sqrt(levels[:-1] * levels[1:]))
    bounded = np.clip(z_scale.astype(np.float64), SCALE_BOUND, LARGEST_Z_SCALE)
    return Tables(
        levels[:-1].astype(np.float32), _table_set(middles, levels), _table_set(bounded, bounded)
    )


def _table_set(scales: np.ndarray, largest: np.ndarray) -> TableSet:
    """One table per density scale (T,), reaching the tails of the largest scale (T,) it serves."""
    quantile = gammaincinv(1 / SHAPE, 1 - TAIL) ** (1 / SHAPE)
    ranges = np.ceil(largest * quantile).astype(np.int32)
    tables = [_frequencies(scale, r) for scale, r in zip(scales, ranges, strict=True)]
    return TableSet(ranges, np.concatenate(tables))


def _frequencies(scale: float, r: int) -> np.ndarray:
    """(2r + 2,) int32, every one at least 1, of sum 2^24: symbols −r..r, then the escape."""
    edges = (np.arange(-r, r + 2) - 0.5) / scale
    # Each side from its own tail: differences of values near 1 would lose the far symbols.
    upper = 0.5 * gammaincc(1 / SHAPE, np.abs(edges) ** SHAPE)
    mass = np.abs(np.diff(upper))
    mass[r] = 1 - 2 * upper[r + 1]
    mass = np.append(mass, 2 * upper[-1])
    frequencies = np.floor(mass / mass.sum() * (TOTAL - mass.size)).astype(np.int64) + 1
    frequencies[r] += TOTAL - frequencies.sum()
    return frequencies.astype(np.int32)
