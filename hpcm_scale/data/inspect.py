"""Summaries of a dataset for people: counts, sizes, and a contact sheet."""

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from rich.table import Table

from hpcm_scale.data.images import BadImage, decode, open_image
from hpcm_scale.data.manifest import Manifest, Split
from hpcm_scale.data.shards import ShardReader
from hpcm_scale.files import atomic_write

TILE, COLUMNS, ROWS = 160, 8, 6  # a thumbnail's side in pixels; thumbnails
BAR = 40  # characters


def summary(manifest: Manifest) -> Table:
    """Totals of each split, and below them the files left out, by reason."""
    table = Table("split", "shards", "images", "MB", "Mpixels", "bits/pixel")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, total in manifest.totals().items():
        table.add_row(
            name,
            f"{total['shards']}",
            f"{total['samples']}",
            f"{total['bytes'] / 1e6:.1f}",
            f"{total['pixels'] / 1e6:.1f}",
            f"{8 * total['bytes'] / max(total['pixels'], 1):.2f}",
        )
    skipped = manifest.report.get("skipped") or {}
    if skipped:
        table.caption = "left out: " + ", ".join(f"{n} {kind}" for kind, n in skipped.items())
    return table


def side_histogram(manifest: Manifest) -> Table:
    """Images by the length of their shorter side, in steps of half an octave."""
    sides = [np.minimum(shard.widths, shard.heights) for shard in manifest.shards]
    bins = np.floor(2 * np.log2(np.maximum(np.concatenate(sides), 1))).astype(int)
    table = Table("shorter side", "images", "")
    table.columns[1].justify = "right"
    counts = np.bincount(bins)
    for step in range(bins.min(), bins.max() + 1):
        low, high = np.ceil(2 ** (step / 2)), np.ceil(2 ** ((step + 1) / 2)) - 1
        bar = "█" * round(BAR * counts[step] / counts.max())
        table.add_row(f"{low:.0f} - {high:.0f}", f"{counts[step]}", bar)
    return table


def contact_sheet(root: str, manifest: Manifest, target: Path) -> int:
    """Write a PNG of thumbnails, taken at equal distances from each split of a local dataset.

    Returns:
        The number of images on it; undecodable ones are left black.
    """
    splits = [manifest.split(name, root) for name in manifest.splits()]
    budget = COLUMNS * ROWS // len(splits)
    tiles = [tile for split in splits for tile in _thumbnails(root, split, budget)]
    rows = -(-len(tiles) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * TILE, rows * TILE))
    for number, tile in enumerate(tiles):
        row, column = divmod(number, COLUMNS)
        corner = (
            column * TILE + (TILE - tile.width) // 2,
            row * TILE + (TILE - tile.height) // 2,
        )
        sheet.paste(tile, corner)
    buffer = BytesIO()
    sheet.save(buffer, "PNG")
    atomic_write(target, buffer.getvalue())
    return len(tiles)


def _thumbnails(root: str, split: Split, count: int) -> list[Image.Image]:
    reader = ShardReader(root, split, 1, cache=None)
    tiles = []
    for sample in np.unique(np.linspace(0, split.samples - 1, count).astype(int)):
        try:
            image = open_image(reader.read(int(sample)))
            image.draft("RGB", (TILE, TILE))  # a JPEG is decoded at the size it is shown at
            image = decode(image)
            image.thumbnail((TILE - 4, TILE - 4))
        except BadImage:
            image = Image.new("RGB", (1, 1))
        tiles.append(image)
    return tiles
