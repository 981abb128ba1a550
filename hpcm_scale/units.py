"""Bytes and decibels: constants, parsing, printing, and the memory that this process takes."""

import math
import platform
import resource
from pathlib import Path

import numpy as np

from hpcm_scale.errors import ConfigError

GIB = 2**30
MIB = 2**20


def parse_size(option: str, text: str) -> int:
    """The bytes in a size such as "80GiB", "1.5 GB" or "4096".

    Args:
        option: where `text` was given, for the error.

    Raises:
        ConfigError: if `text` is not a number, with or without a unit, above 0.
    """
    from pydantic import ByteSize, TypeAdapter, ValidationError  # here: coding waits for none

    try:
        size = int(TypeAdapter(ByteSize).validate_python(text))
    except (ValidationError, OverflowError, ValueError):
        size = 0
    if size <= 0:
        raise ConfigError(f"{option}: {text!r} is not a size such as 80GiB or 500MB")
    return size


def gib(size: float) -> str:
    """`size` bytes, such as "1.50 GiB"."""
    return f"{size / GIB:.2f} GiB"


def processor() -> str:
    """Name of this machine's processor."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def peak_rss() -> int:
    """Most memory this process has had resident, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def resident() -> int:
    """Bytes of this process in memory now."""
    return _status("VmRSS")


def peak_resident() -> int:
    """Most bytes this process has had in memory since its start or `reset_peak`."""
    return _status("VmHWM")


def reset_peak() -> None:
    """Let `peak_resident` start again from here.

    Raises:
        OSError: where the system does not let it.
    """
    Path("/proc/self/clear_refs").write_text("5")


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    return peak_rss()


def psnr(mse: float, peak: float = 1.0) -> float:
    """Peak signal-to-noise ratio in dB of a mean squared error; infinite for 0.

    Args:
        mse: in squared units of `peak`.
        peak: the largest value, 1 or 255.
    """
    return 20 * math.log10(peak) - 10 * math.log10(mse) if mse else math.inf


def mse_of(original: np.ndarray, reconstruction: np.ndarray) -> float:
    """Mean squared error of two uint8 arrays of one shape, in squared levels (0 to 255²)."""
    difference = original.astype(np.int32) - reconstruction
    return float(np.mean(np.square(difference), dtype=np.float64))


def psnr_of(original: np.ndarray, reconstruction: np.ndarray) -> float:
    """PSNR in dB of two uint8 arrays of one shape; infinite for equal ones."""
    return psnr(mse_of(original, reconstruction), 255)
