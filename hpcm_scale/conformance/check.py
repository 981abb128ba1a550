"""An engine against the conformance kit: the first step of each file that differs."""

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from hpcm_scale.codec.engines.choose import chosen_engine, load_engine
from hpcm_scale.codec.engines.engine import Engine
from hpcm_scale.conformance.decode import picture_in, watched
from hpcm_scale.conformance.kit import (
    FOLDER,
    PEERS,
    Case,
    cases,
    cells_of,
    contents,
    model_file,
    opened,
    refused,
)
from hpcm_scale.errors import BitstreamError

MOST_OFF = 0.6
"""Levels that the mean of a cell may be off: every pixel may be one, and hardly any is."""


class Checked(NamedTuple):
    """A file of the kit, and what is wrong with what the engine made of it."""

    name: str
    fault: str | None
    """None if all is as it should be."""


def check_kit(
    engine: str | None, device: str = "cpu", folder: Path | None = None
) -> Iterator[Checked]:
    """Check every file of a kit, one model after the other.

    Args:
        engine: as `chosen_engine` takes it.
        folder: of the kit; None for this program's, the peers' part included where the engine
            computes peers.

    Raises:
        CheckpointError: if a model of the kit cannot be loaded.
    """
    if folder is not None:
        folders = [folder]
    else:
        folders = [FOLDER, PEERS] if chosen_engine(engine, device) == "torch" else [FOLDER]
    for kit in folders:
        with opened(kit) as place:
            yield from _check(engine, device, place)


def _check(engine: str | None, device: str, folder: Path) -> Iterator[Checked]:
    bad = refused(folder)
    models = sorted({case.model for case in cases(folder)} | {model for model, _ in bad.values()})
    for model in models:
        loaded = load_engine(model_file(model, folder), engine, device)
        for case in cases(folder):
            if case.model == model:
                yield Checked(case.name, fault_of(loaded, case, contents(case.name, folder)))
        for name, (of, reason) in bad.items():
            if of == model:
                yield Checked(name, _not_refused(loaded, contents(name, folder), reason))


def fault_of(engine: Engine, case: Case, data: bytes) -> str | None:
    """The first thing in which an engine's decoding differs from a case; None if nothing does."""
    seen = watched(engine, data)
    a_tile = len(engine.step_scales) + 1
    for i, (found, expected) in enumerate(zip(seen.groups, case.groups, strict=False)):
        if found != expected:
            what = "tables" if found.tables != expected.tables else "symbols"
            return f"{_place(i, a_tile)}: other {what}"
    if len(seen.groups) < len(case.groups):
        return f"{_place(len(seen.groups), a_tile)}: not reached ({seen.error})"
    if seen.error is not None:
        return f"after the last step: {seen.error}"
    if seen.latents != case.latents:
        return "other latents, of the right symbols: means differ"
    try:
        picture = picture_in(engine, data)
    except BitstreamError as error:
        return f"after the latents: {error}"
    image = picture.to_pil()
    if (image.mode, image.size) != (case.mode, case.size):
        return f"a picture of {image.size}, mode {image.mode}, not {case.size}, {case.mode}"
    alpha = 0 if picture.alpha is None else zlib.crc32(picture.alpha.tobytes())
    if alpha != case.alpha:
        return "another alpha plane"
    if case.pixels is not None and zlib.crc32(picture.pixels.tobytes()) != case.pixels:
        return "other pixels, of the right latents: g_s differs"
    off = max(abs(a - b) for a, b in zip(cells_of(picture), case.cells, strict=True))
    return f"pixels differ by {off:.2f} levels in the mean of a cell" if off > MOST_OFF else None


def _place(group: int, a_tile: int) -> str:
    tile, within = divmod(group, a_tile)
    return f"tile {tile}, {'z' if within == 0 else f'step {within - 1}'}"


def _not_refused(engine: Engine, data: bytes, reason: str) -> str | None:
    try:
        picture_in(engine, data)
    except BitstreamError:
        return None
    return f"decodes, and should not: {reason}"
