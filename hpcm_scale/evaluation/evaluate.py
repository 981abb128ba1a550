"""Run every setting over every picture, in any number of processes, and keep what was done.

Results are lines of one file, results.jsonl, each under a key of everything it depends on: what is
in the file already is not done again, whoever began it and however often it was interrupted.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from filelock import FileLock
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from hpcm_scale.codec.image_kinds import SUFFIXES, is_picture
from hpcm_scale.codec.images import Picture, read_picture
from hpcm_scale.errors import DataError, HpcmError, one_line, printable
from hpcm_scale.evaluation.codecs import Coder, Setting
from hpcm_scale.evaluation.metrics import decibels, ms_ssim
from hpcm_scale.units import mse_of, processor, psnr

FAULTS = (HpcmError, OSError, RuntimeError, ValueError, SyntaxError, MemoryError)
"""Errors that a picture or a codec may raise without ending the run."""
ResultRow = dict[str, Any]
"""One setting on one picture: figures, or an "error" in their place."""


def pictures_in(folder: Path) -> list[Path]:
    """The picture files of a folder, by name.

    Raises:
        DataError: if there are none.
    """
    if not folder.is_dir():
        raise DataError(f"--data: {folder} is not a folder")
    paths = sorted(p for p in folder.iterdir() if is_picture(p.name) and p.is_file())
    if not paths:
        raise DataError(f"--data: {folder} has no pictures ({', '.join(SUFFIXES)})")
    return paths


def join_processes(device: str) -> PartialState:
    """This process among those `accelerate launch --multi_gpu` started, on CPUs too, or alone.

    (With --cpu accelerate 1.15 starts one process, whatever --num_processes says.)
    """
    # A process that has finished waits for the slowest, however long that takes.
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    return PartialState(
        cpu=not device.startswith("cuda"), **({} if alone else {"timeout": timedelta(days=30)})
    )


def machine(state: PartialState, device: str) -> str:
    """The machine that the times were measured on, in one line."""
    name = processor()
    if device.startswith("cuda"):
        name = f"{torch.cuda.get_device_name()}, {name}"
    return (
        f"{name}, {os.cpu_count()} cores; processes: {state.num_processes}, threads in each: "
        f"{torch.get_num_threads()}; torch {torch.__version__}"
    )


class ResultLog:
    """results.jsonl: appended to by many processes, readable after any of them was killed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = FileLock(path.with_suffix(".lock"))

    def read(self) -> dict[str, ResultRow]:
        """The rows by key, of several of one key the last; a line that is no row is left out."""
        rows = {}
        for line in self._path.read_bytes().splitlines() if self._path.is_file() else ():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict) and isinstance(row.get("key"), str):
                rows[row["key"]] = row
        return rows

    def append(self, row: ResultRow) -> None:
        """Add one row, whole or not at all."""
        line = json.dumps(row).encode() + b"\n"
        with self._lock, self._path.open("ab+") as file:
            if file.tell() and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n":
                line = b"\n" + line  # what a killed process left must not swallow this one
            file.write(line)


def _is_whole(row: ResultRow) -> bool:
    """True if a row has all its figures, each of its kind: the file may have been edited."""
    counted = (row.get("bytes"), row.get("bpp"), row.get("encode_seconds"), row.get("mse"))
    others = [row.get(name) for name in ("decode_seconds", "width", "height")]
    qualities = [row.get(name, "") for name in ("psnr", "ms_ssim", "ms_ssim_db", "peak_mib")]
    return (
        all(_is_number(value) for value in (*counted, *others))
        and all(value is None or _is_number(value) for value in qualities)
        and isinstance(row.get("machine"), str)
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def evaluate(
    settings: Sequence[Setting],
    images: Sequence[Path],
    folder: Path,
    state: PartialState,
    device: str,
    console: Console,
) -> list[ResultRow]:
    """Code every picture at every setting, except what the folder's results.jsonl has already.

    Pictures are shared out between the processes. One that fails at a setting gets a row with an
    "error" in the place of figures, and is tried again next time.

    Args:
        folder: where results.jsonl is, or will be.
        console: told of failures and of progress.

    Returns:
        A row for each setting and picture, settings outermost, the same in every process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log = ResultLog(folder / "results.jsonl")
    hashes = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in images}

    def key_of(setting: Setting, image: Path) -> str:
        parts = [setting.key, hashes[image], torch.get_num_threads()]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]

    done = {key for key, row in log.read().items() if _is_whole(row)}
    state.wait_for_everyone()  # nobody writes before everybody has read
    with state.split_between_processes(list(images)) as share:
        mine = [path for path in share if isinstance(path, Path)]
        jobs = [
            (setting, [image for image in mine if key_of(setting, image) not in done])
            for setting in settings
        ]
    about = {"machine": machine(state, device)}
    said: set[str] = set()
    with Progress(
        "{task.description}",
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not state.is_main_process,
    ) as progress:
        task = progress.add_task("", total=sum(len(pending) for _, pending in jobs))
        for setting, pending in jobs:
            progress.update(task, description=escape(f"{setting.curve} {setting.name}"))
            for image, result in _coded(setting, pending):
                row = {"key": key_of(setting, image), "curve": setting.curve}
                row |= {"setting": setting.name, "image": image.name}
                log.append(row | result | about)
                if (error := result.get("error")) and error not in said:
                    said.add(error)  # once, not at each of its settings
                    console.print(f"hpcm-scale: {printable(error)}", markup=False, soft_wrap=True)
                progress.advance(task)
    state.wait_for_everyone()
    rows = {key: row for key, row in log.read().items() if "error" in row or _is_whole(row)}
    unseen = {"error": f"no result in {folder}, which all processes must share"}
    return [
        rows.get(key_of(setting, image), unseen)
        | {"curve": setting.curve, "setting": setting.name, "image": image.name}
        for setting in settings
        for image in images
    ]


def _coded(setting: Setting, images: Sequence[Path]) -> Iterator[tuple[Path, ResultRow]]:
    """The figures of one setting on each picture, or what went wrong."""
    if not images:
        return
    try:
        coder = setting.open()
    except FAULTS as error:
        for image in images:
            yield image, {"error": _reason(f"{setting.curve} {setting.name}", error)}
        return
    for image in images:
        try:
            pixels = rgb(read_picture(image))
        except DataError as error:
            yield image, {"error": str(error)}
            continue
        try:
            yield image, figures(coder, pixels)
        except FAULTS as error:
            what = f"{image}, {setting.curve} {setting.name}"
            yield image, {"error": _reason(what, error)}


def _reason(what: str, error: Exception) -> str:
    return f"{what}: {one_line(error) or type(error).__name__}"


def rgb(picture: Picture) -> np.ndarray:
    """The pixels as (H, W, 3) uint8: what every codec gets."""
    pixels = picture.pixels
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)


def figures(coder: Coder, pixels: np.ndarray) -> ResultRow:
    """Size, quality, time and memory of coding one picture.

    Args:
        pixels: (H, W, 3) uint8.

    Raises:
        DataError: if what is decoded has another size.
    """
    encoded = coder.encode(pixels)
    decoded = coder.decode(encoded.value)
    if decoded.value.shape != pixels.shape:
        raise DataError(f"decodes to {decoded.value.shape}, was {pixels.shape}")
    error = mse_of(pixels, decoded.value)
    similarity = ms_ssim(pixels, decoded.value)
    peaks = [m.peak_mib for m in (encoded, decoded) if m.peak_mib is not None]
    height, width = pixels.shape[:2]
    return {
        "width": width,
        "height": height,
        "bytes": len(encoded.value),
        "bpp": 8 * len(encoded.value) / (width * height),
        "mse": error,
        "psnr": _finite(psnr(error, 255)),
        "ms_ssim": similarity,
        "ms_ssim_db": _finite(decibels(similarity)),
        "encode_seconds": encoded.seconds,
        "decode_seconds": decoded.seconds,
        "peak_mib": max(peaks, default=None),
    }


def _finite(value: float | None) -> float | None:
    """None for the infinite quality of a picture that came back unchanged: JSON has no infinity."""
    return value if value is not None and math.isfinite(value) else None
