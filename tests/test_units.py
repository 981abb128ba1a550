"""Sizes in bytes."""

import pytest

from hpcm_scale.errors import ConfigError
from hpcm_scale.units import gib, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [("4096", 4096), ("80GiB", 80 * 2**30), ("1.5 GB", 1_500_000_000), ("500MB", 500_000_000)],
)
def test_sizes_are_read_with_or_without_a_unit(text: str, size: int):
    assert parse_size("--memory", text) == size


@pytest.mark.parametrize("text", ["", "0", "-1", "inf", "nan", "1e400", "much", "5 parsecs"])
def test_what_is_no_size_names_option_and_value(text: str):
    with pytest.raises(ConfigError) as caught:
        parse_size("--memory", text)
    assert str(caught.value) == f"--memory: {text!r} is not a size such as 80GiB or 500MB"


def test_gib_is_binary():
    assert gib(1.5 * 2**30) == "1.50 GiB"
