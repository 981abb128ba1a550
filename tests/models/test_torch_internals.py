"""The undocumented names of torch that are used exist in the version installed."""

import pytest
import torch

from hpcm_scale.models.torch_internals import NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_installed_torch_has(name):
    found = torch
    for part in name.split(".")[1:]:
        found = getattr(found, part)
    assert callable(found)
