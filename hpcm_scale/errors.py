"""The one family of errors a user can cause; the CLI prints each on one line and exits 2."""

from unicodedata import category

INTERRUPTED = 75
"""Exit code of a run that was told to stop, saved and can be resumed (sysexits' EX_TEMPFAIL)."""
JOB_LOST = 76
"""Exit code of a rank whose job fell apart: another rank died, hung or cannot be reached."""


_UNPRINTABLE = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")
"""Categories of Unicode: control, format, surrogate, private; separators of lines, paragraphs."""


class HpcmError(Exception):
    """Something the user can put right: the message names the file or field, value and remedy."""

    on_every_rank = False
    """True where all ranks of a job raise it together, so that one of them may report it."""


def one_line(error: BaseException) -> str:
    """An error's text without line breaks; that of an OSError names the file."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename is not None else ""
        text = f"{where}{error.strerror}"
    return printable(" ".join(text.split()))


def printable(text: str) -> str:
    """Text of files, names and models made safe to print: no control or formatting characters.

    They could colour or overwrite a terminal's lines, or reverse them; undecodable bytes of file
    names could not be printed at all.
    """
    return "".join("\ufffd" if category(c) in _UNPRINTABLE else c for c in text)


class ConfigError(HpcmError):
    """A configuration that cannot be used: unknown key, value out of range, misfit parts."""


class ArgumentError(ConfigError):
    """A function's argument that it cannot take.

    The message begins with the argument's name and a colon, or with several names joined by "and";
    options of the command line have the same names.
    """

    def as_option(self) -> str:
        """The message with options in the place of arguments: --exact-pixels for exact_pixels."""
        names, colon, problem = str(self).partition(":")
        options = [f"--{name.replace('_', '-')}" for name in names.split(" and ")]
        return " and ".join(options) + colon + problem


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
    "torch": "torch",
    "scipy": "fit",
    "matplotlib": "fit",
    "fsspec": "train",
    "filelock": "train",
    "psutil": "train",
    "deepspeed": "train",
    "webdataset": "train",
    "tensorboard": "train",
    "trackio": "trackers",
    "wandb": "trackers",
    "mlflow": "trackers",
    "accelerate": "eval",
    "pytorch_msssim": "eval",
    "pillow_jxl": "eval",
    "pyarrow": "tables",
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
