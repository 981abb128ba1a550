"""The verbs `encode`, `decode` and `info` of the command line: files and pipes around the Codec."""

import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

import numpy as np
from rich.console import Console
from rich.progress import Progress

from hpcm_scale.codec import container
from hpcm_scale.codec.codec import Codec
from hpcm_scale.codec.images import Picture, extension_writer, picture_bytes, read_picture
from hpcm_scale.errors import BitstreamError, CheckpointError, DataError, HpcmError
from hpcm_scale.files import atomic_write
from hpcm_scale.units import psnr
from hpcm_scale.weights.model_file import ModelInfo, model_name, models_in, read_info

BUNDLED = Path(__file__).parent / "bundled"
"""The models that come with the program, one for each rate."""
PIPE = "-"
"""Name of standard input among inputs, and of standard output as the output."""
SUFFIX = ".hpcm"


def encode_files(
    inputs: Sequence[str],
    output: str | None,
    model: str | None,
    device: str,
    memory: int,
    verify: bool,
    verbose: bool,
    fast: bool = False,
    quality: int | None = None,
) -> None:
    """Compress pictures, each to a `.hpcm` file.

    Args:
        inputs: files, or - for standard input.
        output: file, folder or -; None for a file beside each input.
        model: as `find_model` takes it.
        device: where the network runs.
        memory: bytes it may work in.
        verify: decode each result before writing it.
        verbose: also say where time and bits went.
        fast: make files that are certain to decode only on a machine like this one.
        quality: as `find_model` takes it.

    Raises:
        HpcmError: for the first thing that goes wrong; with several inputs, after trying them all.
    """
    targets = _targets(inputs, output, SUFFIX)
    for target in targets:
        if target != PIPE and Path(target).suffix != SUFFIX:
            raise DataError(f"--output: {target} does not end in {SUFFIX}; encode writes no other")
    codec = Codec.load(find_model(model, quality=quality), device, memory, portable=not fast)

    def encode(source: str, target: str, report: Callable[[str], None]) -> None:
        picture = read_picture(_contents(source) if source == PIPE else source, source)
        start = perf_counter()
        encoded = codec.compress(picture, estimate=verbose)
        seconds = perf_counter() - start
        size = len(encoded.data)
        ratio = picture.pixels.nbytes / size
        line = (
            f"{source} {encoded.width}x{encoded.height} -> {target}  {_thousands(size)} bytes  "
            f"{encoded.bpp:.3f} bpp  {ratio:.0f}:1  encode {seconds:.1f} s  "
            f"model {codec.info.label}{'  fast, not portable' if fast else ''}"
        )
        if verify:
            with _named(source):
                line += f"  verified {_verify(codec, picture, encoded.data):.2f} dB"
        _deliver(target, encoded.data)
        report(line)
        for notice in encoded.notices:
            report(f"  note: {notice}")
        if verbose:
            bits, estimate = 8 * encoded.payload_bytes, encoded.estimated_bits or math.nan
            report(
                f"  network {encoded.timing.network:.2f} s, entropy coding "
                f"{encoded.timing.entropy:.3f} s; payload {bits} bits, the model's estimate "
                f"{estimate:.0f} ({bits / estimate - 1:+.2%}); "
                f"identity {codec.identity.hex()}"
            )

    _each(inputs, targets, encode, "encoding")


def decode_files(
    inputs: Sequence[str],
    output: str | None,
    model: str | None,
    device: str,
    memory: int,
    verbose: bool,
) -> None:
    """Decompress `.hpcm` files, each to a picture in the format of its name's extension.

    Args: as for `encode_files`.

    Raises:
        HpcmError: for the first thing that goes wrong; with several inputs, after trying them all.
    """
    targets = _targets(inputs, output, ".png")
    for target in targets:
        extension_writer(_picture_name(target))
    codecs: dict[Path, Codec] = {}

    def decode(source: str, target: str, report: Callable[[str], None]) -> None:
        data = _contents(source)
        with _named(source):
            header = container.read(data).header
        path = find_model(model, header.identity)
        if path not in codecs:
            codecs.clear()  # one model in memory at a time
            codecs[path] = Codec.load(path, device, memory)
        codec = codecs[path]
        start = perf_counter()
        with _named(source):
            decoded = codec.decompress(data)
        seconds = perf_counter() - start
        _deliver(target, picture_bytes(decoded.picture, _picture_name(target)))
        report(
            f"{source} -> {target} {header.width}x{header.height}  decode {seconds:.1f} s  "
            f"model {codec.info.label}"
        )
        if verbose:
            report(
                f"  network {decoded.timing.network:.2f} s, "
                f"entropy coding {decoded.timing.entropy:.3f} s"
            )

    _each(inputs, targets, decode, "decoding")


def describe(target: str) -> Iterator[tuple[str, str]]:
    """Description of a `.hpcm` or model file as (field, value) pairs.

    Raises:
        HpcmError: if it is missing, damaged or neither of the two.
    """
    path = Path(target)
    if path.suffix != SUFFIX and not _begins(path, container.MAGIC):
        yield from _describe_model(read_info(path))
        return
    data = _contents(target)
    with _named(target):
        parsed = container.read(data)
    header = parsed.header
    size = sum(map(len, parsed.payloads))
    yield "file", f"{target}, .hpcm version {container.VERSION}"
    yield "picture", f"{header.width}x{header.height}, 8-bit {'grey' if header.grey else 'RGB'}"
    yield "size", f"{_thousands(len(data))} bytes, {8 * len(data) / _pixels(header):.4f} bpp"
    yield "payload", f"{_thousands(size)} bytes in {header.tiles} tiles"
    yield "alpha", "none" if parsed.alpha is None else f"{_thousands(len(parsed.alpha))} bytes"
    yield "ICC profile", "none" if parsed.icc is None else f"{_thousands(len(parsed.icc))} bytes"
    yield "header and checks", f"{_overhead(data, parsed)} bytes"
    arithmetic = "exact, portable" if header.portable else "floating point (--fast), not portable"
    yield "arithmetic", arithmetic
    yield "model identity", header.identity.hex()


def find_model(
    name: str | Path | None, identity: bytes | None = None, quality: int | None = None
) -> Path:
    """The model file that a user means.

    Models are looked for in the folder HPCM_MODELS, or, where that is not set, among those that
    come with the program.

    Args:
        name: a path, or the name of a model; None for the one that fits.
        identity: what the picture to decode carries; picks the model when `name` is None.
        quality: 1 for the model of the lowest rate, 2 for the next, ...; the middle one of several
            if neither of the others is given.

    Raises:
        CheckpointError: if there is no such model.
    """
    if name is not None and Path(name).is_file():
        return Path(name)
    own = os.environ.get("HPCM_MODELS")
    models = models_in(BUNDLED if own is None else own)
    infos = {path: info for path in models.values() if (info := _info_of(path)) is not None}
    place = "the bundled models are" if own is None else f"HPCM_MODELS={own} has"
    listed = ", ".join(models) or "none"
    if name is not None:
        found = models.get(model_name(str(name)))
        if found is None:
            raise CheckpointError(f"--model: {name}: no such file, and {place} {listed}")
        return found
    if identity is not None:
        for path, info in infos.items():
            if info.identity.startswith(identity.hex()):
                return path
        raise CheckpointError(
            f"made by model {identity.hex()}, which is not here ({place} {listed}); name its file "
            "with --model"
        )
    # What names no λ, as some imported models do, has no place among the rates.
    rates = {path: info.lmbda for path, info in infos.items() if info.lmbda is not None}
    by_rate = sorted(rates, key=rates.__getitem__)
    if quality is None and len(infos) == 1:
        return next(iter(infos))
    if not by_rate:
        raise CheckpointError(f"--model: name one ({place} {listed})")
    if quality is None:
        quality = (len(by_rate) + 1) // 2
    if not 1 <= quality <= len(by_rate):
        raise CheckpointError(
            f"--quality: {quality} is not one of 1 to {len(by_rate)}, as many as there are models"
        )
    return by_rate[quality - 1]


def _info_of(path: Path) -> ModelInfo | None:
    """A model file's description; None for a file that is no model, which may lie among them."""
    try:
        return read_info(path)
    except CheckpointError:
        return None


def _describe_model(info: ModelInfo) -> Iterator[tuple[str, str]]:
    yield "file", f"{info.path}, model {info.label}"
    yield "identity", f"{info.identity[:8]} (SHA-256 {info.identity})"
    yield "tables", info.tables_hash
    yield "lambda", "unknown" if info.lmbda is None else f"{info.lmbda:g}"
    for field, value in info.config:
        yield f"config.{field}", str(value)
    for field, value in info.record.items():
        yield f"record.{field}", str(value)


def _targets(inputs: Sequence[str], output: str | None, suffix: str) -> list[str]:
    """The file that each input's result goes to."""
    into_folder = output is not None and (
        len(inputs) > 1 or output.endswith("/") or Path(output).is_dir()
    )
    if output is not None and into_folder and (output == PIPE or Path(output).is_file()):
        raise DataError(f"--output: {output} cannot take {len(inputs)} files; name a folder")
    if output is not None and not into_folder:
        targets = [output]
    else:
        if PIPE in inputs and (into_folder or len(inputs) > 1):
            raise DataError("-: standard input has no name to make another from; give it alone")
        targets = [
            PIPE
            if source == PIPE
            else str(Path(output or Path(source).parent) / f"{Path(source).stem}{suffix}")
            for source in inputs
        ]
    for i, (source, target) in enumerate(zip(inputs, targets, strict=True)):
        if target in targets[:i]:
            raise DataError(f"{source}: {target} would be written twice; give folders of their own")
        if target != PIPE and Path(target).resolve() == Path(source).resolve():
            raise DataError(f"{source}: would be overwritten by its own result; use --output")
    return targets


def _each(
    inputs: Sequence[str],
    targets: Sequence[str],
    run: Callable[[str, str, Callable[[str], None]], None],
    doing: str,
) -> None:
    """Run over files with a progress bar; one bad file does not keep the others from being done."""
    console = Console(stderr=PIPE in targets, highlight=False, soft_wrap=True)
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    failed = 0
    with Progress(console=errors, transient=True, disable=len(inputs) == 1) as progress:
        task = progress.add_task(doing, total=len(inputs))
        for source, target in zip(inputs, targets, strict=True):
            try:
                run(source, target, lambda line: console.print(line, markup=False))
            except HpcmError as error:
                if len(inputs) == 1:
                    raise
                errors.print(f"hpcm-scale: {error}", markup=False)
                failed += 1
            progress.advance(task)
    if failed:
        raise DataError(f"{failed} of {len(inputs)} files failed; the others are done")


def _contents(source: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if source == PIPE else Path(source).read_bytes()
    except OSError as error:
        raise DataError(f"{source}: cannot be read ({error.strerror})") from None


def _deliver(target: str, data: bytes) -> None:
    if target == PIPE:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    try:
        atomic_write(target, data)
    except OSError as error:
        raise DataError(f"{target}: cannot be written ({error.strerror})") from None


def _verify(codec: Codec, picture: Picture, data: bytes) -> float:
    """PSNR in dB of what `data` decodes to; raises BitstreamError if it does not decode."""
    decoded = codec.decompress(data).picture
    same_alpha = (
        decoded.alpha is picture.alpha
        if picture.alpha is None or decoded.alpha is None
        else np.array_equal(picture.alpha, decoded.alpha)
    )
    if not same_alpha or decoded.icc != picture.icc:
        raise BitstreamError("does not decode to the alpha plane or ICC profile it was made from")
    error = np.mean(np.square(picture.pixels.astype(np.float32) - decoded.pixels), dtype=float)
    return psnr(float(error), 255)


@contextmanager
def _named(source: str) -> Iterator[None]:
    """Put the file's name in front of what is wrong with it."""
    try:
        yield
    except BitstreamError as error:
        raise BitstreamError(f"{source}: {error}") from None


def _begins(path: Path, magic: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(magic)) == magic
    except OSError:
        return False


def _picture_name(target: str) -> str:
    return "standard output.png" if target == PIPE else target


def _pixels(header: container.Header) -> int:
    return header.width * header.height


def _overhead(data: bytes, parsed: container.Container) -> int:
    return len(data) - sum(
        len(part or b"") for part in (parsed.icc, parsed.alpha, *parsed.payloads)
    )


def _thousands(value: int) -> str:
    return f"{value:,}".replace(",", " ")
