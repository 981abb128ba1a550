"""The configuration of a run's data."""

from pydantic import Field

from hpcm_scale.config.strict import Count, Positive, StrictModel


class DataConfig(StrictModel):
    """What a run is trained and validated on, and how samples are drawn."""

    train: str
    """Folder or URL (http, s3, gs, ...) of a packed dataset: what holds its manifest.json."""
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
    """Canonical streams the order is made of. Ranks × workers must divide it; keep it for the
    whole life of a run, whatever machines it moves to: the order depends on it."""
    workers: Count = 2
    """Decoding processes of each rank; 0 decodes in the training process."""
    shuffle_buffer: Positive = 1024
    """Samples shuffled among each other on top of the shuffled shards; 1 reads shards in order."""
    cache: str = "~/.cache/hpcm_scale/shards"
    """Folder for the shards of a remote dataset, shared by the ranks of a host."""
    cache_gb: float = Field(default=100, gt=0)
    """Bound of that folder in 10^9 bytes; the shards unused for longest are deleted first."""
    max_bad_rate: float = Field(default=0.01, ge=0, le=1)
    """Share of undecodable samples past which the run stops; 0 stops at the first."""
