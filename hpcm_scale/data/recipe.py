"""The recipe of a dataset: which images are taken, as what, and which are kept for validation."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from hpcm_scale.config import Positive, StrictModel, parse, read_yaml
from hpcm_scale.data.images import PIXEL_LIMIT


class ValConfig(StrictModel):
    """The images kept for validation. Packing again never moves an image between the splits."""

    fraction: float = Field(default=0.0, ge=0, lt=1)
    """Share of all images, chosen by the hash of their pixels."""
    names: tuple[str, ...] = ()
    """Images by name, without folder and suffix; for sets too small for a random split."""

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if self.fraction and self.names:
            raise ValueError("fraction: give either a fraction or names, not both")
        return self


class Recipe(StrictModel):
    """Recipe by which `hpcm-scale pack` turns a source into a dataset."""

    source: str | None = None
    """A folder, searched with its subfolders, or a glob such as /photos/**/*.png."""
    licence: str = ""
    """Terms under which the images may be used; copied to the manifest."""
    min_side: Positive = 256
    """Images with a shorter side, in pixels, are left out: training crops must fit."""
    max_pixels: int = Field(default=100_000_000, gt=0, le=PIXEL_LIMIT)
    """Images with more pixels are left out before anything of them is decoded."""
    jpeg_downscale: float = Field(default=1.0, gt=0, le=1)
    """Factor by which the sides of JPEG sources are scaled (0.5 hides most of their artefacts)."""
    format: Literal["keep", "png", "webp"] = "keep"
    """keep: the bytes of the source file; png, webp: re-encoded without loss (above 16383 pixels on
    a side, which WebP cannot hold, as PNG). With keep, images
    that must change (scaled, not RGB, or neither JPEG, PNG nor WebP) are stored as PNG."""
    non_rgb: Literal["convert", "skip"] = "convert"
    """Grey, palette and CMYK images: made RGB, or left out. Those with real transparency, more
    than 8 bits a channel, or several frames are always left out."""
    val: ValConfig = ValConfig()
    """Which images are kept for validation."""
    shard_mb: float = Field(default=256, gt=0)
    """Source bytes that go into one shard, in 10^6."""


def read_recipe(path: Path | str) -> Recipe:
    """The recipe in a YAML file.

    Raises:
        ConfigError: naming the file, field, value and rule.
    """
    return parse(Recipe, read_yaml(path), str(path))
