"""Which engine computes, and a model file loaded into it."""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Union, cast

from hpcm_scale.codec.engines.engine import Engine
from hpcm_scale.errors import ArgumentError

if TYPE_CHECKING:
    from hpcm_scale.numpy_engine.model import NumpyModel
    from hpcm_scale.weights.model_file import LoadedModel

Name = Literal["numpy", "torch"]
NAMES: tuple[Name, ...] = ("numpy", "torch")
NUMPY_WORK = 2e12
"""Pixels times bytes of the model file, up to which decoding in NumPy is the cheaper.

A byte is a weight of it or less, and a weight's products are as many as the picture has pixels. On
one core of an AMD EPYC (Zen 3) the bundled `compact` decodes 512×512, 1e12 of them, in a quarter of
the processor time of `import torch`, and `w0.125-0.013` likewise. At this bound, 739×739 pixels by
`compact`, NumPy is thus done before torch has started, on as many cores as there may be.
"""


def chosen_engine(name: str | None, device: str = "cpu") -> Name:
    """The engine of that name; without one, torch where it is installed.

    Raises:
        ArgumentError: for a name that is none, or a device that the NumPy engine has not.
    """
    if name is None:
        return "torch" if device != "cpu" or has_torch() else "numpy"
    if name not in NAMES:
        raise ArgumentError(f"engine: {name!r} is not one of {', '.join(NAMES)}")
    if name == "numpy" and device != "cpu":
        raise ArgumentError(f"engine and device: numpy runs on cpu, not on {device!r}")
    return "numpy" if name == "numpy" else "torch"


def cheaper_engine(work: float) -> Name:
    """The engine that decodes at the lower cost, its start included, on the CPU.

    For what both decode to the same pixels: files of exact pixels, by models of HPCM.

    Args:
        work: of all that one process decodes, as of `NUMPY_WORK`.
    """
    return "torch" if work > NUMPY_WORK and has_torch() else "numpy"


def has_torch() -> bool:
    """Whether torch is installed; it is not imported."""
    try:
        return importlib.util.find_spec("torch") is not None
    except ModuleNotFoundError:  # a finder that hides it
        return False


def load_engine(path: Path | str, name: str | None = None, device: str = "cpu") -> Engine:
    """A model file in an engine.

    Raises:
        CheckpointError: if it is missing, damaged or not a model that the engine computes.
        ArgumentError: as `chosen_engine`.
    """
    if chosen_engine(name, str(device)) == "numpy":
        from hpcm_scale.numpy_engine.model import load_numpy

        return engine_of(load_numpy(path))
    from hpcm_scale.weights.model_file import load_model

    return engine_of(load_model(path, device))


def engine_of(model: Union["LoadedModel", "NumpyModel", Engine]) -> Engine:
    """The engine of a loaded model."""
    # By the class's name: neither engine waits for the other's libraries.
    kind = type(model).__name__
    if kind == "NumpyModel":
        from hpcm_scale.codec.engines.numpy_engine import NumpyEngine

        return NumpyEngine(cast("NumpyModel", model))
    if kind == "LoadedModel":
        from hpcm_scale.codec.engines.torch_engine import TorchEngine

        return TorchEngine(cast("LoadedModel", model))
    return cast("Engine", model)


def threads_of(name: Name) -> int:
    """CPU threads that an engine takes here."""
    if name == "torch":
        import torch

        return torch.get_num_threads()
    from hpcm_scale.numpy_engine.threads import thread_count

    return thread_count()


def set_threads(name: Name, threads: int) -> None:
    """Let an engine take so many CPU threads in this process."""
    if name == "torch":
        import torch

        torch.set_num_threads(threads)
    else:
        from hpcm_scale.numpy_engine.threads import set_thread_count

        set_thread_count(threads)
