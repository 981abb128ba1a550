"""The codecs of an evaluation, all alike: RGB pixels to a real file's bytes and back, measured.

Each is a list of settings (a model file, or a quality of another codec); each setting gives one
point of the codec's rate-distortion curve. Coded are the 8-bit RGB pixels alone: no codec carries
alpha or metadata.
"""

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version as version_of
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import PIL
import pillow_jxl  # noqa: F401  registers JPEG XL with Pillow
import torch
from PIL import Image, features

from hpcm_scale import __version__
from hpcm_scale.codec.aim import LARGEST_RATE, NO_AIM, Aim, quality_of
from hpcm_scale.codec.codec import Codec
from hpcm_scale.codec.images import Picture
from hpcm_scale.config import ModelConfig
from hpcm_scale.errors import ConfigError
from hpcm_scale.units import MIB, peak_resident, reset_peak
from hpcm_scale.weights.model_info import ModelInfo
from hpcm_scale.weights.stored_model import read_info

T = TypeVar("T")


class Measured(NamedTuple, Generic[T]):
    """Result of a call and its cost."""

    value: T
    seconds: float
    """Wall time."""
    peak_mib: float | None
    """Largest resident memory of this process meanwhile, its libraries included; None where the
    system cannot say, and for a command."""


class Coder(NamedTuple):
    """A setting ready to code."""

    encode: Callable[[np.ndarray], Measured[bytes]]
    """(H, W, 3) uint8 -> the file's bytes."""
    decode: Callable[[bytes], Measured[np.ndarray]]


@dataclass(frozen=True)
class Setting:
    """One operating point of a codec."""

    curve: str
    """The R-D curve it is a point of: the codec's name."""
    name: str
    """Name of the point: a quality, or λ."""
    key: dict[str, Any]
    """All that its results depend on, beside the picture, as JSON values."""
    open: Callable[[], Coder]
    """Load what it takes to code; released with the coder."""
    model: ModelInfo | None = None
    """The model file of a model's setting."""


@dataclass(frozen=True)
class PillowCodec:
    """A codec that Pillow writes."""

    format: str
    """Pillow's name."""
    library: str | None
    """Name of its library in `PIL.features`."""
    sweep: tuple[float, ...]
    """Qualities evaluated unless told."""
    limits: tuple[float, float]
    """Quality of the smallest and of the largest file."""
    options: Callable[[float], dict[str, Any]]
    """Pillow's options for a quality. They are chosen for the best PSNR over RGB."""

    def encode(self, pixels: np.ndarray, quality: float) -> bytes:
        """The file's bytes of (H, W, 3) uint8."""
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, self.format, **self.options(quality))
        return out.getvalue()

    def decode(self, data: bytes) -> np.ndarray:
        """(H, W, 3) uint8 of a file's bytes."""
        return np.asarray(Image.open(io.BytesIO(data), formats=(self.format,)).convert("RGB"))


def _threads() -> int:
    return torch.get_num_threads()


PILLOW = {
    # Pillow's default chroma, 4:2:0, and Huffman tables made for the picture.
    "jpeg": PillowCodec(
        "JPEG",
        "libjpeg_turbo",
        (5, 10, 20, 30, 50, 70, 85, 95),
        (1, 95),
        lambda q: {"quality": round(q), "optimize": True},
    ),
    "webp": PillowCodec(
        "WEBP",
        "webp",
        (1, 5, 15, 30, 50, 70, 85, 95),
        (0, 100),
        lambda q: {"quality": round(q), "method": 6},
    ),
    # The quality is the ratio of raw to coded bytes. Pillow leaves the colour transform out unless
    # told, at a cost of 2 to 4 dB, and adds a wrapper of 85 bytes.
    "jpeg2000": PillowCodec(
        "JPEG2000",
        "jpg_2000",
        (240, 160, 120, 80, 60, 40, 24, 16),
        (1000, 3),
        lambda q: {
            "quality_mode": "rates",
            "quality_layers": [q],
            "irreversible": True,
            "mct": 1,
            "no_jp2": True,
            "num_threads": _threads(),
        },
    ),
    # 4:4:4 is as good as 4:2:0 below 0.15 bpp and better above.
    "avif": PillowCodec(
        "AVIF",
        "avif",
        (5, 15, 25, 35, 50, 65, 80),
        (0, 100),
        lambda q: {
            "quality": round(q),
            "subsampling": "4:4:4",
            "speed": 4,
            "max_threads": _threads(),
        },
    ),
    "jxl": PillowCodec(
        "JXL",
        None,
        (1, 5, 15, 30, 50, 70, 80, 90),
        (0, 99),
        lambda q: {"quality": round(q), "effort": 9, "num_threads": _threads()},
    ),
}
"""The codecs that need no program beside this one, by the names `--codecs` takes."""


def measured(run: Callable[[], T]) -> Measured[T]:
    """Run something in this process and measure it."""
    try:
        reset_peak()
        counts = True
    except OSError:
        counts = False
    start = perf_counter()
    value = run()
    seconds = perf_counter() - start
    return Measured(value, seconds, peak_resident() / MIB if counts else None)


def pillow_settings(names: Iterable[str]) -> list[Setting]:
    """The sweeps of codecs in `PILLOW`.

    Raises:
        ConfigError: for an unknown name, or one this Pillow was built without.
    """
    settings = []
    for name in names:
        codec = PILLOW.get(name)
        if codec is None:
            raise ConfigError(f"--codecs: {name!r} is not one of {', '.join(PILLOW)}")
        if codec.library and not features.check(codec.library):
            raise ConfigError(f"--codecs: this Pillow was built without {name}; leave it out")
        version = (
            features.version(codec.library) if codec.library else version_of("pillow-jxl-plugin")
        )
        for quality in codec.sweep:
            key = {
                "codec": name,
                "options": codec.options(quality),
                "library": f"Pillow {PIL.__version__}, {codec.library or name} {version}",
            }
            settings.append(
                Setting(name, f"{quality:g}", key, lambda c=codec, q=quality: _pillow_coder(c, q))
            )
    return settings


def _pillow_coder(codec: PillowCodec, quality: float) -> Coder:
    return Coder(
        lambda pixels: measured(lambda: codec.encode(pixels, quality)),
        lambda data: measured(lambda: codec.decode(data)),
    )


def model_settings(
    paths: Sequence[Path], device: str, memory: int, fast: bool = False
) -> list[Setting]:
    """One setting for each model file; models of one architecture make one curve.

    Two models of one architecture and one λ (two trainings, say) go to curves of their own.

    Args:
        device: where the networks run.
        memory: bytes they may work in.
        fast: code in floating point, not in exact arithmetic.

    Raises:
        CheckpointError: if one is missing or not a model file.
        ConfigError: if one is given twice.
    """
    infos = [read_info(path) for path in paths]
    identities = [info.identity for info in infos]
    for i, identity in enumerate(identities):
        if identity in identities[:i]:
            first = paths[identities.index(identity)]
            raise ConfigError(f"{paths[i]}: is the same model as {first}; give each once")
    members: dict[str, tuple[ModelConfig, set[float | None]]] = {}
    settings = []
    for info in sorted(infos, key=lambda info: info.lmbda or 0):
        curve = ""
        # The first curve of this architecture that has no model of this λ yet.
        for number in count(1):
            curve = f"HPCM {info.config.name}" + (f" #{number}" if number > 1 else "")
            config, taken = members.setdefault(curve, (info.config, set()))
            if config == info.config and info.lmbda not in taken:
                taken.add(info.lmbda)
                break
        key = {
            "model": info.identity,
            "device": device.partition(":")[0],  # any GPU of a machine will do
            "memory": memory,
            "fast": fast,
            "program": __version__,
        }
        for name, aim in _rates_of(info):
            rated = key if aim == NO_AIM else key | {"quality": aim.quality}
            settings.append(
                Setting(
                    curve,
                    name,
                    rated,
                    lambda i=info, a=aim: _model_coder(i.path, device, memory, fast, a),
                    info,
                )
            )
    return settings


def _rates_of(info: ModelInfo) -> list[tuple[str, Aim]]:
    """Name and aim of each point of a model's curve: its λ, or qualities of its λs in turn."""
    count = len(info.config.rates)
    if not count:
        return [("?" if info.lmbda is None else f"{info.lmbda:g}", NO_AIM)]
    places = [round(i * LARGEST_RATE / (count - 1)) for i in range(count)]
    aims = [Aim(quality=quality_of(place)) for place in places]
    return [(f"q{aim.quality:.4g}", aim) for aim in aims]


def _model_coder(path: Path, device: str, memory: int, fast: bool, aim: Aim) -> Coder:
    codec = Codec.load(path, device, memory, portable=not fast)
    return Coder(
        lambda pixels: measured(lambda: codec.compress(Picture(pixels), aim=aim).data),
        lambda data: measured(lambda: codec.decompress(data).picture.pixels),
    )
