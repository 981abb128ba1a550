"""The verbs `encode` and `decode` of the command line: files and pipes around the Codec."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import numpy as np

from hpcm_scale.codec import container
from hpcm_scale.codec.aim import HIGHEST_QUALITY, NO_AIM, Aim, largest_within, quality_of
from hpcm_scale.codec.codec import Codec
from hpcm_scale.codec.coding_result import Encoded, OnProgress, part_of, unheard
from hpcm_scale.codec.engines.choose import Name, chosen_engine, set_threads
from hpcm_scale.codec.file_engine import engine_for_files
from hpcm_scale.codec.file_jobs import PIPE, Job, contents_of, named, plan_jobs
from hpcm_scale.codec.find_model import Catalogue
from hpcm_scale.codec.image_kinds import is_picture
from hpcm_scale.codec.image_writer import WRITERS, extension_writer, losses, picture_bytes
from hpcm_scale.codec.images import Picture, read_picture
from hpcm_scale.codec.metadata import Metadata
from hpcm_scale.codec.run_jobs import run_jobs
from hpcm_scale.errors import BitstreamError, DataError
from hpcm_scale.files import atomic_write
from hpcm_scale.units import psnr_of
from hpcm_scale.weights.stored_model import read_info

SUFFIX = ".hpcm"
TOLERANCE = 1
"""Levels that two runs of g_s on one machine may differ by."""


@dataclass(frozen=True)
class FileOptions:
    """Options of a command on files."""

    output: str | None = None
    """File, folder or -; None for a file beside each input."""
    force: bool = False
    """Replace files that were not named."""
    skip_existing: bool = False
    """Leave out inputs whose result is there."""
    strip: bool = False
    """Leave out EXIF, XMP, resolution and colour tags."""
    verbose: bool = False
    """Also say where time and bits went."""
    device: str = "cpu"
    """Device of the network."""
    engine: Name | None = None
    """Library that computes the network; None to decode with the cheaper one, on the CPU."""
    memory: int = 2 << 30
    """Bytes the network may work in, in each process."""
    jobs: int = 1
    """Files at once."""
    threads: int | None = None
    """CPU threads of each process; None to share the cores out."""


class ArithmeticOptions(NamedTuple):
    """The arithmetic of files that are made."""

    portable: bool = True
    """Exact on the entropy path; else files are certain to decode only on a machine like this."""
    pixels: bool | None = None
    """Exact in g_s too, as `Codec` takes it."""


EXACT = ArithmeticOptions()


def encode_files(
    inputs: Sequence[str],
    options: FileOptions,
    model: str | None = None,
    aim: Aim = NO_AIM,
    arithmetic: ArithmeticOptions = EXACT,
    verify: bool = False,
    total_size: int | None = None,
    progressive: bool = False,
) -> None:
    """Compress pictures, each to a `.hpcm` file.

    Args:
        inputs: files, folders whose pictures are taken, or - for standard input.
        model: as `Catalogue.find` takes it, with the quality of `aim`.
        aim: for each file, where the model codes at every rate; a model of one rate that is chosen
            by its place among others meets a quality by that.
        arithmetic: of the files.
        verify: decode each result before writing it, and compare.
        total_size: bytes of all results together, at most and at one rate; instead of an aim.
        progressive: make files whose beginning gives a preview.

    Raises:
        HpcmError: for the first thing that goes wrong; with several inputs, after trying them all.
    """
    output = options.output
    kinds = (is_picture, _is_coded, _holds_picture)
    plan = plan_jobs(inputs, output, SUFFIX, *kinds, options.force, options.skip_existing)
    for job in plan.jobs:
        if job.target != PIPE and not _is_coded(job.target):
            raise DataError(
                f"--output: {job.target} does not end in {SUFFIX}; encode writes no other"
            )
    path = Catalogue().find(model, quality=aim.quality)
    if model is None and not read_info(path).config.rates:
        aim = replace(aim, quality=None)  # it chose the model
    _say_skipped(plan.skipped)
    if plan.jobs:
        if total_size is not None:
            aim = _aim_for_all(plan.jobs, path, options, arithmetic, total_size, progressive)
        make = partial(_Encoder, path, options, arithmetic, verify, aim, progressive)
        engine = chosen_engine(options.engine, options.device)
        run_jobs(plan.jobs, make, "encoding", options.jobs, options.threads, engine)


def decode_files(
    inputs: Sequence[str],
    options: FileOptions,
    model: str | None = None,
    preview: bool = False,
) -> None:
    """Decompress `.hpcm` files, each to a picture in the format of its name's extension.

    Args:
        inputs: files, folders whose `.hpcm` files are taken, or - for standard input.
        model: as `Catalogue.find` takes it; None for the one that made each file.
        preview: show the beginning of progressive files, whose ends may be lacking.

    Raises:
        HpcmError: for the first thing that goes wrong; with several inputs, after trying them all.
    """
    plan = plan_jobs(
        inputs,
        options.output,
        "-preview.png" if preview else ".png",
        _is_coded,
        lambda name: Path(name).suffix.lower() in WRITERS,
        _holds_coded,
        options.force,
        options.skip_existing,
    )
    for job in plan.jobs:
        extension_writer(_picture_name(job.target))
    _say_skipped(plan.skipped)
    if plan.jobs:
        engine = options.engine
        if engine is None:
            sources = (job.source for job in plan.jobs)
            engine = chosen_engine(None) if preview else engine_for_files(sources, model)
            if options.threads is not None:
                set_threads(engine, options.threads)
        make = partial(_Decoder, model, replace(options, engine=engine), preview)
        run_jobs(plan.jobs, make, "decoding", options.jobs, options.threads, engine)


class _Encoder:
    """Picture files to `.hpcm` files by one model."""

    def __init__(
        self,
        model: Path,
        options: FileOptions,
        arithmetic: ArithmeticOptions,
        verify: bool,
        aim: Aim,
        progressive: bool,
    ) -> None:
        self._codec = _loaded(model, options, arithmetic)
        self._codec.check_aim(aim)
        self._aim = aim
        self._progressive = progressive
        self._options = options
        self._verify = verify

    def __call__(self, job: Job, on_progress: OnProgress = unheard) -> list[str]:
        source, target = job
        picture = read_picture(contents_of(source) if source == PIPE else source, source)
        if self._options.strip:
            picture = replace(picture, metadata=Metadata())
        start = perf_counter()
        first = part_of(on_progress, 0, 0.5) if self._verify else on_progress
        encoded = self._compress(picture, source, first)
        seconds = perf_counter() - start
        line = _summary(source, target, picture, encoded)
        line += f"  encode {seconds:.1f} s  model {self._codec.info.label}"
        if encoded.rate is not None:
            line += f"  quality {quality_of(encoded.rate):.1f}"
        if not self._codec.portable:
            line += "  fast, not portable"
        if self._verify:
            with named(source):
                quality = _verified(self._codec, picture, encoded, part_of(on_progress, 0.5, 1))
            line += f"  verified {quality:.2f} dB"
        _deliver(target, encoded.data)
        lines = [line, *(f"  note: {notice}" for notice in encoded.notices)]
        if self._options.verbose:
            lines.append(self._details(encoded))
        return lines

    def _compress(self, picture: Picture, source: str, on_progress: OnProgress) -> Encoded:
        try:
            return self._codec.compress(
                picture,
                self._options.verbose,
                self._verify,
                on_progress,
                self._aim,
                self._progressive,
            )
        except DataError as error:
            raise DataError(f"{source}: {error}") from None

    def _details(self, encoded: Encoded) -> str:
        bits, estimate = 8 * encoded.payload_bytes, encoded.estimated_bits
        line = (
            f"  network {encoded.timing.network:.2f} s, entropy coding "
            f"{encoded.timing.entropy:.3f} s; payload {bits} bits"
        )
        if estimate:
            line += f", the model's estimate {estimate:.0f} ({bits / estimate - 1:+.2%})"
        return f"{line}; identity {self._codec.identity.hex()}"

    def sizes(self, jobs: Sequence[Job], rate: int) -> int:
        """Bytes that the results of all jobs take at a rate."""
        self._aim = Aim(quality=quality_of(rate))
        total = 0
        for source, _ in jobs:
            picture = read_picture(source, source)
            if self._options.strip:
                picture = replace(picture, metadata=Metadata())
            total += len(self._compress(picture, source, unheard).data)
        return total


class _Decoder:
    """`.hpcm` files to picture files, each by the model that made it."""

    def __init__(self, model: str | None, options: FileOptions, preview: bool) -> None:
        self._catalogue = Catalogue()
        if model is None:
            self._catalogue.note_faults()
        self._model = model
        self._options = options
        self._preview = preview
        self._loaded: tuple[Path, Codec] | None = None

    def __call__(self, job: Job, on_progress: OnProgress = unheard) -> list[str]:
        source, target = job
        data = contents_of(source)
        with named(source):
            parsed = container.read_start(data) if self._preview else container.read(data)
        header = parsed.header
        codec = self._codec_for(header.identity)
        start = perf_counter()
        with named(source):
            decoded = codec.decompress(data, on_progress, self._preview)
        seconds = perf_counter() - start
        picture, name = decoded.picture, _picture_name(target)
        if self._options.strip:
            picture = replace(picture, metadata=Metadata())
        _deliver(target, picture_bytes(picture, name))
        lines = [
            f"{source} -> {target} {header.width}x{header.height}  decode {seconds:.1f} s  "
            f"model {codec.info.label}"
        ]
        if self._preview:
            shown = min(len(parsed.payloads) // header.tiles, header.scales - 1)
            lines[0] += f"  PREVIEW of {shown} of {header.scales} scales, not checked"
        lines += [f"  note: {loss}" for loss in losses(picture, name)]
        if self._options.verbose:
            lines.append(
                f"  network {decoded.timing.network:.2f} s, "
                f"entropy coding {decoded.timing.entropy:.3f} s"
            )
        return lines

    def _codec_for(self, identity: bytes) -> Codec:
        path = self._catalogue.find(self._model, identity)
        if self._loaded is None or self._loaded[0] != path:
            self._loaded = None  # one model in memory at a time
            self._loaded = path, _loaded(path, self._options)
        return self._loaded[1]


def _loaded(model: Path, options: FileOptions, arithmetic: ArithmeticOptions = EXACT) -> Codec:
    return Codec.load(
        model,
        options.device,
        options.memory,
        arithmetic.portable,
        options.engine,
        arithmetic.pixels,
    )


def _aim_for_all(
    jobs: Sequence[Job],
    model: Path,
    options: FileOptions,
    arithmetic: ArithmeticOptions,
    total: int,
    progressive: bool,
) -> Aim:
    """The quality at which all results together take `total` bytes at most."""
    if any(job.source == PIPE for job in jobs):
        raise DataError("--total-size: is for files, not for a pipe; give --size")
    aim = Aim(quality=HIGHEST_QUALITY)
    encoder = _Encoder(model, options, arithmetic, False, aim, progressive)
    rate = largest_within(lambda rate: encoder.sizes(jobs, rate), total, "--total-size")
    return Aim(quality=quality_of(rate))


def thousands(value: int) -> str:
    """A number with its digits in groups of three."""
    return f"{value:,}".replace(",", " ")


def _say_skipped(count: int) -> None:
    if count:
        sys.stderr.write(f"hpcm-scale: {count} done before, left as they are\n")


def _summary(source: str, target: str, picture: Picture, encoded: Encoded) -> str:
    size = len(encoded.data)
    line = (
        f"{source} {encoded.width}x{encoded.height} -> {target}  {thousands(size)} bytes  "
        f"{encoded.bpp:.3f} bpp  {picture.pixels.nbytes / size:.0f}:1"
    )
    tags = encoded.metadata_bytes
    return line + (f"  {thousands(tags)} of them metadata" if 20 * tags > size else "")


def _deliver(target: str, data: bytes) -> None:
    if target == PIPE:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    try:
        atomic_write(target, data)
    except OSError as error:
        raise DataError(f"{target}: cannot be written ({error.strerror})") from None


def _verified(codec: Codec, picture: Picture, encoded: Encoded, on_progress: OnProgress) -> float:
    """PSNR in dB of what a file decodes to.

    Raises:
        BitstreamError: if it does not decode, or to another picture than the encoder saw in its
            symbols: then more is lost than the model's own loss.
    """
    decoded = codec.decompress(encoded.data, on_progress).picture
    same_alpha = (
        decoded.alpha is picture.alpha
        if picture.alpha is None or decoded.alpha is None
        else np.array_equal(picture.alpha, decoded.alpha)
    )
    if not same_alpha or (decoded.icc, decoded.metadata) != (picture.icc, picture.metadata):
        raise BitstreamError("does not decode to the alpha plane, profile and tags of its picture")
    expected = encoded.reconstruction
    if expected is None or np.abs(expected.astype(np.int16) - decoded.pixels).max() > TOLERANCE:
        raise BitstreamError(
            "does not decode to the picture that its symbols stand for; this machine or program "
            "is at fault"
        )
    return psnr_of(picture.pixels, decoded.pixels)


def _is_coded(name: str) -> bool:
    return name.lower().endswith(SUFFIX)


def _holds_picture(path: str) -> bool:
    try:
        read_picture(path, path)
    except DataError:
        return False
    return True


def _holds_coded(path: str) -> bool:
    try:
        return contents_of(path).startswith(container.MAGIC)
    except DataError:
        return False


def _picture_name(target: str) -> str:
    return "standard output.png" if target == PIPE else target
