"""The one family of errors a user can cause; the CLI prints each on one line and exits 2."""

INTERRUPTED = 75
"""Exit code of a run that was told to stop, saved and can be resumed (sysexits' EX_TEMPFAIL)."""
JOB_LOST = 76
"""Exit code of a rank whose job fell apart: another rank died, hung or cannot be reached."""


class HpcmError(Exception):
    """Something the user can put right: the message names the file or field, value and remedy."""

    on_every_rank = False
    """True where all ranks of a job raise it together, so that one of them may report it."""


def one_line(error: BaseException) -> str:
    """An error's text without line breaks; that of an OSError names the file."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename is not None else ""
        return " ".join(f"{where}{error.strerror}".split())
    return " ".join(str(error).split())


class ConfigError(HpcmError):
    """A configuration that cannot be used: unknown key, value out of range, misfit parts."""


class DataError(HpcmError):
    """Photos, shards or manifests that are missing, damaged or disagree with each other."""


class CheckpointError(HpcmError):
    """A checkpoint or model file that is missing, damaged or not what was asked for."""


class BitstreamError(HpcmError):
    """A compressed file that is damaged, absurd, or made by another model."""


class RunError(HpcmError):
    """A run, or a set of run records, that cannot be used as asked."""


class MissingPackage(HpcmError):
    """A package that is not installed, and the extra of this project that brings it."""


EXTRAS = {
    "deepspeed": "train",
    "webdataset": "train",
    "tensorboard": "train",
    "trackio": "trackers",
    "wandb": "trackers",
    "mlflow": "trackers",
    "accelerate": "eval",
    "pytorch_msssim": "eval",
    "pillow_jxl": "eval",
}
"""Top-level module -> the extra of pyproject.toml that installs it."""


def missing_package(error: ModuleNotFoundError) -> MissingPackage | None:
    """Error for a module that could not be imported; None if no extra brings it."""
    module = (error.name or "").partition(".")[0]
    if module not in EXTRAS:
        return None
    return MissingPackage(
        f"this needs the package {module}, which is not installed: "
        f"pip install 'hpcm-scale[{EXTRAS[module]}]'"
    )
