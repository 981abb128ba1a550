"""The verbs `eval` and `table` of the command line."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from hpcm_scale.codec.find_model import find_model
from hpcm_scale.errors import ConfigError, DataError
from hpcm_scale.evaluation import table
from hpcm_scale.evaluation.codecs import PILLOW, Setting, model_settings, pillow_settings
from hpcm_scale.evaluation.command_codec import command_settings, read_command_codec
from hpcm_scale.evaluation.comparison_page import write_page
from hpcm_scale.evaluation.curves import Evaluation, assess, checked_anchor
from hpcm_scale.evaluation.evaluate import evaluate, join_processes, pictures_in
from hpcm_scale.evaluation.plots import plot
from hpcm_scale.evaluation.published import read_points
from hpcm_scale.evaluation.report_file import Report, read, write

RIVALS = ("jpeg", "webp", "avif")
"""On the comparison page unless codecs are named."""


def evaluate_codecs(
    models: Sequence[str],
    data: Path,
    folder: Path,
    names: Sequence[str],
    commands: Sequence[str],
    points: Sequence[str],
    anchor: str | None,
    page: int,
    device: str,
    memory: int,
    fast: bool,
    console: Console,
    errors: Console,
) -> None:
    """Evaluate and write everything there is to say of it.

    Args:
        models: files or names, as `find_model` takes them.
        data: folder of pictures.
        folder: of results.
        names: codecs of `PILLOW`, or "all".
        commands: codecs by command lines, as `read_command_codec` takes them.
        points: files of published points.
        anchor: curve that BD-rates refer to.
        page: pictures on the comparison page.
        device: where models run; "cuda" gives each process its own.
        memory: bytes a network may work in.
        fast: code in floating point, not in exact arithmetic.
        console: told the results.
        errors: told of failures and of progress.

    Raises:
        HpcmError: for anything wrong with the arguments before anything is run; at the end if a
            picture failed.
    """
    images = pictures_in(data)
    others = [curve for source in points for curve in read_points(source)]
    names = list(PILLOW) if "all" in names else list(dict.fromkeys(names))
    state = join_processes(device)
    place = f"cuda:{state.local_process_index}" if device == "cuda" else device
    settings = [
        *model_settings([find_model(model) for model in models], place, memory, fast),
        *pillow_settings(names),
        *(s for text in commands for s in command_settings(read_command_codec(text))),
    ]
    _check_names(settings)
    if anchor is not None:
        checked_anchor(anchor, [s.curve for s in settings] + [curve.name for curve in others])
    rows = evaluate(settings, images, folder, state, place, errors)
    state.destroy_process_group()  # what is left is one process's work
    if not state.is_main_process:
        return
    found = assess(settings, rows, others, anchor)
    written = write(found, rows, data, folder)
    written += plot(found.curves, f"{data.name}, {len(found.images)} pictures", folder)
    subject = _subject(settings, found)
    if page and subject:
        rivals = [name for name in names if name in PILLOW] or RIVALS
        shown = _spread([image for image in images if image.name in found.images], page)
        written.append(folder / "comparison.html")
        write_page(subject, rivals, shown, place, memory, written[-1])
    console.print(
        table.measured_table(
            Report(
                data=str(data),
                machines=found.machines,
                curves=found.curves,
                anchor=found.anchor,
                deltas=found.deltas,
                left_out=found.left_out,
            )
        )
    )
    names_written = ", ".join(path.name for path in written)
    console.print(f"{folder}: {names_written}", highlight=False, markup=False)
    if found.failures:
        dropped = f"; dropped: {', '.join(found.dropped)}" if found.dropped else ""
        raise DataError(
            f"{len(found.failures)} of {len(rows)} codings failed; averages are over the "
            f"{len(found.images)} of {len(images)} pictures that all settings coded{dropped}"
        )


def _check_names(settings: Sequence[Setting]) -> None:
    if not settings:
        raise ConfigError("eval: name a model file, --codecs or --codec")
    seen = set()
    for setting in settings:
        if (setting.curve, setting.name) in seen:
            raise ConfigError(f"--codec: {setting.curve} {setting.name} is there twice; rename it")
        seen.add((setting.curve, setting.name))


def _subject(settings: Sequence[Setting], found: Evaluation) -> Setting | None:
    """The model of the comparison page: the one in the middle of the first learned curve."""
    for curve in found.curves:
        if "model" in curve.points[0]:
            middle = curve.points[len(curve.points) // 2]
            name = (curve.name, middle["setting"])
            return next(s for s in settings if (s.curve, s.name) == name)
    return None


def _spread(images: Sequence[Path], count: int) -> list[Path]:
    """`count` of the images, evenly spaced."""
    picked = np.linspace(0, len(images) - 1, min(count, len(images))).round().astype(int)
    return [images[i] for i in picked]


def tables(results: Sequence[Path], points: Sequence[str], anchor: str | None) -> Iterator[Table]:
    """The tables of the verb `table`: published, counted, and what folders and files hold.

    Raises:
        DataError: if a folder or a file holds none, or the anchor is not among the curves.
    """
    # What can be wrong comes first: the counting takes its time.
    reports = [read(folder) for folder in results]
    curves = [curve for source in points for curve in read_points(source)]
    if curves:
        anchor = checked_anchor(anchor, [curve.name for curve in curves])
    yield table.published_table()
    yield table.counted_table()
    if anchor is not None and curves:
        yield table.points_table(curves, anchor)
    for report in reports:
        yield table.measured_table(report)
