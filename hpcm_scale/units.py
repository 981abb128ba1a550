"""Bytes and decibels: constants, parsing, printing, and the memory that this process takes."""

import math
import resource

from pydantic import ByteSize, TypeAdapter, ValidationError

from hpcm_scale.errors import ConfigError

GIB = 2**30
MIB = 2**20

_BYTES = TypeAdapter(ByteSize)


def parse_size(option: str, text: str) -> int:
    """The bytes in a size such as "80GiB", "1.5 GB" or "4096".

    Args:
        option: where `text` was given, for the error.

    Raises:
        ConfigError: if `text` is not a number, with or without a unit, above 0.
    """
    try:
        size = int(_BYTES.validate_python(text))
    except (ValidationError, OverflowError, ValueError):
        size = 0
    if size <= 0:
        raise ConfigError(f"{option}: {text!r} is not a size such as 80GiB or 500MB")
    return size


def gib(size: float) -> str:
    """`size` bytes, such as "1.50 GiB"."""
    return f"{size / GIB:.2f} GiB"


def peak_rss() -> int:
    """Most memory this process has had resident, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def psnr(mse: float, peak: float = 1.0) -> float:
    """Peak signal-to-noise ratio in dB of a mean squared error; infinite for 0.

    Args:
        mse: in squared units of `peak`.
        peak: the largest value, 1 or 255.
    """
    return 20 * math.log10(peak) - 10 * math.log10(mse) if mse else math.inf
