"""Integer coding tables: made once, when a model is exported, and never recomputed to decode.

A table gives the symbols −r..r, and one escape symbol for everything beyond, frequencies that are
integers summing to 2^24, the coder's total. y has one table per interval of scales, z one per
hyper channel. `table_building.py` makes them from a network's densities.
"""

import hashlib
from dataclasses import dataclass
from typing import Self

import numpy as np

from hpcm_scale.errors import CheckpointError

PRECISION = 24
"""log2 of what a table's frequencies sum to."""
TOTAL = 1 << PRECISION
LARGEST_COUNT = 1 << 16
"""Tables of y that a 16-bit index numbers."""


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
    """(S − 1,) float32, ascending: a latent's interval is the number of them below its scale."""
    y: TableSet
    """One table per interval of scales and, of each, one per interval of offsets where these
    are."""
    z: TableSet
    """One table per hyper channel."""
    offsets: np.ndarray | None = None
    """(K − 1,) float32, ascending, where symbols are round(y): a latent's table is K times its
    interval and the number of these below |mean − round(mean)|."""

    def __post_init__(self) -> None:
        tables = len(self.y.ranges)
        if not (
            _ascends(self.boundaries)
            and (self.offsets is None or _ascends(self.offsets))
            and tables == (len(self.boundaries) + 1) * self.per_scale
            and tables <= LARGEST_COUNT
        ):
            raise CheckpointError(
                "coding tables: boundaries of scales and offsets are not finite, ascending "
                "float32 that the tables of y lie between; export the model again"
            )

    @property
    def per_scale(self) -> int:
        """K, tables of y of each interval of scales."""
        return 1 if self.offsets is None else len(self.offsets) + 1

    @property
    def index_type(self) -> type[np.unsignedinteger]:
        """The narrowest type that numbers the tables of y: narrow ones sort fastest."""
        return np.uint8 if len(self.y.ranges) <= 256 else np.uint16

    def arrays(self) -> dict[str, np.ndarray]:
        """The tables as named arrays, as they are stored."""
        arrays = {
            "y.boundaries": self.boundaries,
            "y.ranges": self.y.ranges,
            "y.frequencies": self.y.frequencies,
            "z.ranges": self.z.ranges,
            "z.frequencies": self.z.frequencies,
        }
        return arrays if self.offsets is None else arrays | {"y.offsets": self.offsets}

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
                arrays.get("y.offsets"),
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


def _ascends(array: np.ndarray) -> bool:
    """Whether it is a list of finite, ascending float32."""
    is_list = array.dtype == np.float32 and array.ndim == 1
    return is_list and bool(np.isfinite(array).all() and (np.diff(array) > 0).all())
