"""A small dataset for the runs of these tests."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hpcm_scale.data.pack import pack
from hpcm_scale.data.recipe import read_recipe


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> Path:
    """Six smooth random pictures in shards, two of them for validation."""
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for i in range(6):
        coarse = generator.integers(0, 256, (8, 9, 3), np.uint8)
        Image.fromarray(coarse).resize((288, 256), Image.Resampling.BICUBIC).save(
            folder / f"{i}.png"
        )
    recipe = folder / "recipe.yaml"
    recipe.write_text("{licence: made here, min_side: 256, val: {names: ['0', '1']}}")
    pack(str(folder), folder / "shards", read_recipe(recipe))
    return folder / "shards"
