"""The aim of an encoding, and the rate that meets it: for models that code at every rate."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from numbers import Real

from hpcm_scale.entropy.exact.pixels import LARGEST_RATE
from hpcm_scale.errors import ArgumentError, DataError

LOWEST_QUALITY, HIGHEST_QUALITY = 1.0, 100.0
DEFAULT_QUALITY = 50.0
SIZE_TOLERANCE = 0.01
"""A file is at most this share smaller than was asked, where the range of rates allows it."""
PSNR_TOLERANCE = 0.01
"""dB that a picture may be better than was asked."""
_ATTEMPTS = 34
"""Rates tried at most: every other step halves a range of 16 bits."""


@dataclass(frozen=True)
class Aim:
    """One of these; none for the default quality.

    Raises:
        ArgumentError: if there are several, or one is out of its range.
    """

    quality: float | None = None
    """1 to 100, the best; equal steps multiply λ equally."""
    size: int | None = None
    """Bytes that the file may have at most."""
    bpp: float | None = None
    """Bits a pixel that the file may have at most."""
    psnr: float | None = None
    """dB that the decoded picture has at least."""

    def __post_init__(self) -> None:
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        given = {name: value for name, value in given.items() if value is not None}
        if len(given) > 1:
            raise ArgumentError(f"{' and '.join(given)}: give one of them")
        for name, value in given.items():
            if not (isinstance(value, Real) and math.isfinite(value) and float(value) > 0):
                raise ArgumentError(f"{name}: {value!r} is not a finite number above 0")
        if self.quality is not None and not LOWEST_QUALITY <= self.quality <= HIGHEST_QUALITY:
            raise ArgumentError(
                f"quality: {self.quality:g} is not from {LOWEST_QUALITY:g} to {HIGHEST_QUALITY:g}"
            )

    @property
    def is_default(self) -> bool:
        """Whether nothing was asked for."""
        return self == Aim()

    @property
    def needs_search(self) -> bool:
        """Whether the rate has to be found by trying."""
        return not self.is_default and self.quality is None

    def rate(self) -> int:
        """The rate of a quality that was given, or of the default one."""
        quality = DEFAULT_QUALITY if self.quality is None else self.quality
        span = HIGHEST_QUALITY - LOWEST_QUALITY
        return round((quality - LOWEST_QUALITY) / span * LARGEST_RATE)

    def largest_size(self, pixels: int) -> int | None:
        """Bytes allowed for a picture; None where the aim is not a size."""
        if self.size is not None:
            return int(self.size)
        return None if self.bpp is None else int(self.bpp * pixels / 8)


NO_AIM = Aim()
"""The default quality."""


def quality_of(rate: int) -> float:
    """The quality, 1 to 100, that a rate stands for."""
    return LOWEST_QUALITY + (HIGHEST_QUALITY - LOWEST_QUALITY) * rate / LARGEST_RATE


def largest_within(measure: Callable[[int], float], limit: float, what: str) -> int:
    """The rate whose size is at most `limit`, and at most `SIZE_TOLERANCE` below if there is one.

    Args:
        measure: bytes at a rate, which grow with it.
        what: names the limit in errors.

    Raises:
        DataError: if even the lowest rate takes more.
    """
    lowest = measure(0)
    if lowest > limit:
        raise DataError(
            f"{what}: takes {lowest:.0f} bytes at the lowest rate, {limit:.0f} are asked for"
        )
    highest = measure(LARGEST_RATE)
    if highest <= limit:
        return LARGEST_RATE
    ends = (math.log(lowest / limit), math.log(highest / limit))
    return _between(lambda rate: math.log(measure(rate) / limit), ends, SIZE_TOLERANCE)


def smallest_reaching(measure: Callable[[int], float], least: float, what: str) -> int:
    """The rate whose quality is `least` or more, by at most `PSNR_TOLERANCE` if there is one.

    Args:
        measure: dB at a rate, which grow with it.
        what: names the picture in errors.

    Raises:
        DataError: if even the highest rate reaches less.
    """
    best = measure(LARGEST_RATE)
    if best < least:
        raise DataError(
            f"{what}: reaches {best:.2f} dB at the highest rate, {least:g} are asked for"
        )
    worst = measure(0)
    if worst >= least:
        return 0
    # The same search from the other end.
    ends = (least - best, least - worst)
    mirrored = _between(lambda rate: least - measure(LARGEST_RATE - rate), ends, PSNR_TOLERANCE)
    return LARGEST_RATE - mirrored


def _between(excess: Callable[[int], float], ends: tuple[float, float], tolerance: float) -> int:
    """A rate whose excess, which grows with the rate, is in (−tolerance, 0].

    Args:
        ends: the excess of the first rate, at most 0, and of the last, above 0.

    The largest that is known not to exceed, where rates are too coarse. Goes by the secant of the
    two ends, and by halves where the last step left more than half of the range.
    """
    low, high = 0, LARGEST_RATE
    below, above = ends
    # A little under what was asked is right, a little above is not.
    target = -tolerance / 2
    halve = False
    for _ in range(_ATTEMPTS):
        span = high - low
        if span <= 1 or below > -tolerance:
            break
        share = 0.5 if halve else (target - below) / (above - below)
        middle = min(max(low + round(span * share), low + 1), high - 1)
        value = excess(middle)
        if value <= 0:
            low, below = middle, value
        else:
            high, above = middle, value
        halve = high - low > span / 2
    return low
