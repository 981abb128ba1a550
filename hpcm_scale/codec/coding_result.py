"""Results of encoding and decoding, and the time each part took."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from hpcm_scale.codec.images import Picture

OnProgress = Callable[[float], None]
"""Callback that takes the share of a call that is done, from 0 to 1."""


def unheard(share: float) -> None:
    """Progress that nobody asked for."""


def part_of(on_progress: OnProgress, start: float, end: float) -> OnProgress:
    """Progress of a part that takes a call from one share to another."""
    return lambda share: on_progress(start + (end - start) * share)


@dataclass
class Timing:
    """Seconds that the parts of a call took."""

    network: float = 0.0
    entropy: float = 0.0
    """Sorting, coding and checking symbols; moving them off the device."""

    @property
    def total(self) -> float:
        """Seconds of the whole call."""
        return self.network + self.entropy

    @contextmanager
    def entropy_part(self) -> Iterator[None]:
        """Count the block as entropy coding rather than network."""
        start = perf_counter()
        try:
            yield
        finally:
            spent = perf_counter() - start
            self.entropy += spent
            self.network -= spent

    @contextmanager
    def network_part(self) -> Iterator[None]:
        """Count the block as network, but for the entropy parts inside it."""
        start = perf_counter()
        try:
            yield
        finally:
            self.network += perf_counter() - start


@dataclass(frozen=True)
class Encoded:
    """A compressed picture and its figures."""

    data: bytes
    """The whole `.hpcm` file."""
    width: int
    height: int
    payload_bytes: int
    """The entropy-coded part of `data`."""
    metadata_bytes: int
    """The part of `data` that holds metadata."""
    estimated_bits: float | None
    """Information content of the symbols under the model's densities; None unless asked for of an
    engine that has them."""
    timing: Timing
    notices: tuple[str, ...] = ()
    """Losses beside the coding itself, for the user to know."""
    reconstruction: np.ndarray | None = None
    """The pixels that `data` should decode to, uint8; None unless asked for."""
    rate: int | None = None
    """Rate of the file, as its header has it; None of a model of one rate."""

    @property
    def bpp(self) -> float:
        """Bits of the whole file per pixel of the picture."""
        return 8 * len(self.data) / (self.width * self.height)


@dataclass(frozen=True)
class Decoded:
    """A decompressed picture."""

    picture: Picture
    timing: Timing
