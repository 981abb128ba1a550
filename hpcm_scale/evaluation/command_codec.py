"""Other people's codecs as two command lines: an encoder and a decoder.

    hpcm-scale eval ... --codec 'name=cwebp; extension=.webp; quality=10,40,70,90;
        encode=cwebp -quiet -m 6 -q {quality} {input} -o {output};
        decode=dwebp -quiet {input} -o {output}'

The encoder gets a PNG and the decoder must write one; both run without a shell. Results are kept by
these lines: after an upgrade of the programs, evaluate into a new folder.
"""

import io
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from PIL import Image
from pydantic import Field, field_validator

from hpcm_scale.config.strict import StrictModel, parse, read_yaml
from hpcm_scale.errors import ConfigError, DataError
from hpcm_scale.evaluation.codecs import Coder, Measured, Setting


class CommandCodec(StrictModel):
    """A codec run by two command lines. {input}, {output} and {quality} are filled in; no shell."""

    name: str = Field(min_length=1)
    """The curve's name."""
    encode: str
    """Reads the PNG {input}, writes the file {output} at {quality}."""
    decode: str
    """Reads the file {input}, writes the PNG {output}."""
    quality: tuple[str, ...] = Field(min_length=1)
    """Values of {quality}, one R-D point each."""
    extension: str = ".bin"
    """Extension of the coded file."""

    @field_validator("quality", mode="before")
    @classmethod
    def _texts(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = value.split(",")
        return [str(v).strip() for v in value] if isinstance(value, list | tuple) else value

    @field_validator("encode", "decode")
    @classmethod
    def _has_places(cls, value: str) -> str:
        for place in ("{input}", "{output}"):
            if place not in value:
                raise ValueError(f"{value!r} has no {place}")
        return value


def read_command_codec(text: str) -> CommandCodec:
    """A command-line codec from `--codec`.

    Args:
        text: "name=...; encode=...; decode=...; quality=..., ..." or the path of a YAML file with
            these keys.

    Raises:
        ConfigError: for a key that is missing or unknown, or a program that is not installed.
    """
    if text.endswith((".yaml", ".yml")):
        codec = parse(CommandCodec, read_yaml(text), text)
    else:
        items = (item.partition("=") for item in text.split(";") if item.strip())
        values = {key.strip(): value.strip() for key, _, value in items}
        codec = parse(CommandCodec, values, "--codec")
    for command in (codec.encode, codec.decode):
        try:
            program = shlex.split(command)[0]
        except ValueError as error:
            raise ConfigError(f"--codec {codec.name}: {command!r}: {error}") from None
        if shutil.which(program) is None:
            raise ConfigError(f"--codec {codec.name}: the program {program} is not installed")
    return codec


def command_settings(codec: CommandCodec) -> list[Setting]:
    """One setting for each quality."""
    return [
        Setting(
            codec.name,
            quality,
            {"command": [codec.encode, codec.decode, quality]},
            lambda q=quality: _command_coder(codec, q),
        )
        for quality in codec.quality
    ]


def _command_coder(codec: CommandCodec, quality: str) -> Coder:
    def encode(pixels: np.ndarray) -> Measured[bytes]:
        png = io.BytesIO()
        Image.fromarray(pixels).save(png, "PNG", compress_level=1)
        return _command(codec.encode, quality, png.getvalue(), ".png", codec.extension)

    def decode(data: bytes) -> Measured[np.ndarray]:
        png = _command(codec.decode, quality, data, codec.extension, ".png")
        image = Image.open(io.BytesIO(png.value), formats=("PNG",))
        return Measured(np.asarray(image.convert("RGB")), png.seconds, png.peak_mib)

    return Coder(encode, decode)


def _command(template: str, quality: str, data: bytes, kind: str, out_kind: str) -> Measured[bytes]:
    """Run a command on a file of `data`; the file it writes."""
    with tempfile.TemporaryDirectory(prefix="hpcm-eval-") as folder:
        source, target = Path(folder) / f"in{kind}", Path(folder) / f"out{out_kind}"
        source.write_bytes(data)
        places = {"{input}": str(source), "{output}": str(target), "{quality}": quality}
        arguments = []
        # Split first, so that nothing filled in can become two arguments.
        for argument in shlex.split(template):
            for place, value in places.items():
                argument = argument.replace(place, value)
            arguments.append(argument)
        start = perf_counter()
        done = subprocess.run(
            arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        seconds = perf_counter() - start
        if done.returncode or not target.is_file():
            words = done.stdout.decode(errors="replace").split()
            raise DataError(
                f"{' '.join(arguments)}: exit code {done.returncode}, "
                f"{'an' if target.is_file() else 'no'} output file; {' '.join(words[-30:])}"
            )
        # Linux counts the memory of the process that started it among a command's own.
        return Measured(target.read_bytes(), seconds, None)
