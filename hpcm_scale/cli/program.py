"""The Typer program itself, and what its verbs share.

Heavy imports stay inside the verbs, so that `hpcm-scale --help` and the fits do not wait for torch.
"""

import os
import platform
import signal
import sys
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn, cast

# Before torch is loaded: threads that wait for each other sleep. Spinning, two threads on cores
# that others use take ten times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# The NumPy engine has threads of its own. On ARM torch too may have this BLAS.
if platform.machine() == "x86_64" and "numpy" not in sys.modules:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# A rank whose connections break says why in a line; torch would add a page of C++ frames.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

# Plugins of pydantic are looked for in every package that is installed, which takes longer than
# a small picture; none is of use here.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")

import typer

from hpcm_scale import __version__
from hpcm_scale.errors import ArgumentError, ConfigError, HpcmError, missing_package, one_line
from hpcm_scale.heap import keep_heap
from hpcm_scale.units import GIB

if TYPE_CHECKING:
    from rich.console import Console

    from hpcm_scale.codec.engines.choose import Name

app = typer.Typer(
    name="hpcm-scale",
    help="Train HPCM image codecs at any scale, fit their scaling laws, compress images with them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
LARGEST_MEMORY = 1e6


class _Later:
    """A Console of rich that is imported when it is first used: a decode prints without."""

    def __init__(self, stderr: bool) -> None:
        self._stderr = stderr

    @cached_property
    def _console(self) -> "Console":
        from rich.console import Console

        return Console(stderr=self._stderr)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._console, name)

    def __enter__(self) -> "Console":
        return self._console.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._console.__exit__(*error)


console = cast("Console", _Later(stderr=False))
errors = cast("Console", _Later(stderr=True))


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Print the version.")) -> None:
    if version:
        console.print(__version__)
        raise typer.Exit()


THREADS_A_CORE = 4
"""More of them make OpenMP fail, not the network faster."""


def bytes_of(gib: float) -> int:
    """The bytes in so many GiB, as `--memory` gives them.

    Raises:
        ConfigError: if that is no amount.
    """
    if not 0 < gib < LARGEST_MEMORY:
        raise ConfigError(f"--memory: {gib:g} is not a number of GiB, above 0 and below a million")
    return int(gib * GIB)


def checked_device(name: str, threads: int | None) -> str:
    """The device by that name, tried, with torch's threads set.

    Raises:
        ConfigError: if the device cannot compute, or there are far more threads than cores.
    """
    import torch

    check_threads(threads)
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        torch.ones(1, device=name).sum().item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--device: {name!r} cannot be used ({reason})") from None
    return name


def checked_engine(name: str | None, device: str, threads: int | None) -> tuple[str, "Name"]:
    """A device, tried, and the engine that computes on it, with its threads set.

    Raises:
        ConfigError: as `checked_device` and `chosen_engine`.
    """
    from hpcm_scale.codec.engines.choose import chosen_engine, set_threads

    engine = chosen_engine(name, device)
    if engine == "torch":
        return checked_device(device, threads), engine
    check_threads(threads)
    if threads is not None:
        set_threads(engine, threads)
    return device, engine


def check_threads(threads: int | None) -> None:
    """Raises ConfigError if there are far more threads than cores."""
    most = THREADS_A_CORE * (os.cpu_count() or 1)
    if threads is not None and threads > most:
        raise ConfigError(f"--threads: {threads} is above {most}, {THREADS_A_CORE} a core")


def main() -> None:
    """Entry point: a user's error becomes one line on stderr and exit code 2."""
    # As Ctrl-C does, so that temporary files are removed on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    keep_heap()
    try:
        app()
    except BrokenPipeError:
        sys.exit(1)
    except (HpcmError, OSError) as error:  # a full disk or a read-only folder is no bug either
        _fail(error)
    except ModuleNotFoundError as error:
        missing = missing_package(error)
        if missing is None:
            raise
        _fail(missing)


def _fail(error: Exception) -> NoReturn:
    """Print an error on one line and exit with 2."""
    from rich.text import Text

    if isinstance(error, ArgumentError):
        error = ConfigError(error.as_option())
    errors.print(Text.assemble(("hpcm-scale: ", "red"), one_line(error)), soft_wrap=True)
    sys.exit(2)
