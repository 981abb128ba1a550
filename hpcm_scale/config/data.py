"""The configuration of a run's data."""

from pydantic import Field

from hpcm_scale.config.strict import Count, Positive, StrictModel


class DataConfig(StrictModel):
    """Training and validation sets of a run, and how samples are drawn."""

    train: str
    """Folder or URL (http, s3, gs, ...) of a dataset: the one that holds its manifest.json."""
    val: str | None = None
    """Validation images: another packed dataset, a plain folder of images, or the val split of
    `train` where this is not given."""
    val_also: tuple[str, ...] = ()
    """More sets that are validated at the same times, each a packed dataset or a plain folder of
    images; the rows of metrics are of kind val-<name of the folder>."""
    crop: Positive = 256
    """Side of the square training crop, in pixels. No image of the split may be smaller."""
    flips: bool = True
    """Mirror half of the crops, left to right."""
    streams: Positive = 64
    """Canonical streams of the sample order. Ranks × workers must divide it. It must stay the same
    for the whole run, on whatever machines: the order depends on it."""
    workers: Count = 2
    """Decoding processes of each rank; 0 decodes in the training process."""
    shuffle_buffer: Positive = 1024
    """Samples of a block that is shuffled, besides the order of shards; 1 reads shards in order."""
    cache: str = "~/.cache/hpcm_scale/shards"
    """Folder for the shards of a remote dataset, shared by the ranks of a host."""
    cache_gb: float = Field(default=100, gt=0)
    """Bound of that folder in 10^9 bytes; the least recently used shards are deleted first."""
    max_bad_rate: float = Field(default=0.01, ge=0, le=1)
    """Share of undecodable samples above which the run stops; 0 stops at the first."""
