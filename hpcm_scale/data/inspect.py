"""What is in a dataset, for people: counts, sizes, and a contact sheet."""

from rich.table import Table

from hpcm_scale.data.manifest import Manifest


def summary(manifest: Manifest) -> Table:
    """Totals of each split, and below them the files left out, by reason."""
    table = Table("split", "shards", "images", "MB", "Mpixels", title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, total in manifest.totals().items():
        table.add_row(
            name,
            f"{total['shards']}",
            f"{total['samples']}",
            f"{total['bytes'] / 1e6:.1f}",
            f"{total['pixels'] / 1e6:.1f}",
        )
    skipped = manifest.report.get("skipped") or {}
    if skipped:
        table.caption = "left out: " + ", ".join(f"{n} {kind}" for kind, n in skipped.items())
    return table
