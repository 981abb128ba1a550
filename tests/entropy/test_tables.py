import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.stats import gennorm

from hpcm_scale.entropy.table_building import GENERALIZED, y_tables, z_tables
from hpcm_scale.entropy.tables import TOTAL, Tables, TableSet
from hpcm_scale.errors import CheckpointError
from hpcm_scale.models.density import ZPrior


def tables_of(z_scale: np.ndarray) -> Tables:
    """The tables of an HPCM with these scales of z."""
    prior = ZPrior(len(z_scale))
    prior.scale = torch.nn.Parameter(torch.from_numpy(z_scale).view(1, -1, 1, 1))
    boundaries = GENERALIZED.levels()[:-1].astype(np.float32)
    return Tables(boundaries, y_tables(GENERALIZED), z_tables(prior))


@pytest.fixture(scope="module")
def tables() -> Tables:
    return tables_of(np.linspace(0.05, 30, 12, dtype=np.float32))


@given(arrays.arrays(np.float32, st.integers(1, 20), elements=st.floats(-1, 5000, width=32)))
@settings(max_examples=20, deadline=None)
def test_any_z_scales_give_tables_for_every_symbol(z_scale: np.ndarray) -> None:
    tables = tables_of(z_scale)
    for group, count in ((tables.y, GENERALIZED.count), (tables.z, len(z_scale))):
        sums = np.add.reduceat(group.frequencies.astype(np.int64), group.starts[:-1])
        assert len(sums) == count
        assert (sums == TOTAL).all()
        assert group.frequencies.min() >= 1


@pytest.mark.parametrize("index", [0, 1, 17, 40, 59])
def test_frequencies_are_of_the_scales_served(tables: Tables, index: int) -> None:
    levels = GENERALIZED.levels()
    r = tables.y.ranges[index]
    start, end = tables.y.starts[index : index + 2]
    scale = np.sqrt(levels[max(index - 1, 0)] * levels[index])
    density = gennorm(1.5, scale=scale)  # SciPy's own, not the table's formula
    edges = np.arange(-r, r + 2) - 0.5
    mass = np.append(np.diff(density.cdf(edges)), 2 * density.sf(r + 0.5))
    share = tables.y.frequencies[start:end] / TOTAL
    assert np.abs(share - mass).max() < 2 * len(mass) / TOTAL
    # At the largest scale served, at most 10^-6 escapes; with a smaller range more would.
    density = gennorm(1.5, scale=levels[index])
    assert 2 * density.sf(r) <= 1e-6 < 2 * density.sf(r - 1)


@pytest.mark.parametrize("scale", [0.12, 0.13, 0.5, 1.7, 20.0, 60.0])
def test_a_table_costs_little_more_than_its_density(tables: Tables, scale: float) -> None:
    index = int((tables.boundaries < scale).sum())
    r = tables.y.ranges[index]
    start, end = tables.y.starts[index : index + 2]
    density = gennorm(1.5, scale=scale)
    mass = np.diff(density.cdf(np.arange(-r, r + 2) - 0.5))
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.nansum(mass * np.log2(mass))
    cost = (mass * (24 - np.log2(tables.y.frequencies[start : end - 1]))).sum()
    assert -1e-5 < cost - entropy < 0.0025


def test_boundaries_are_the_first_59_of_60_log_spaced_scales(tables: Tables) -> None:
    ratio = (64 / 0.12) ** (1 / 59)
    expected = 0.12 * ratio ** np.arange(59)
    assert np.allclose(tables.boundaries, expected, rtol=1e-6)


def test_a_changed_frequency_changes_the_hash(tables: Tables) -> None:
    frequencies = tables.y.frequencies.copy()
    frequencies[:2] += (1, -1)
    changed = Tables(tables.boundaries, TableSet(tables.y.ranges, frequencies), tables.z)
    assert changed.digest() != tables.digest()
    assert Tables.from_arrays(tables.arrays()).digest() == tables.digest()


def _with(tables: Tables, **changes: np.ndarray) -> dict[str, np.ndarray]:
    return tables.arrays() | {name.replace("_", "."): value for name, value in changes.items()}


def test_damaged_tables_are_refused(tables: Tables) -> None:
    lowered = tables.y.frequencies.copy()
    lowered[5] -= 1
    negative = tables.y.frequencies.copy()
    negative[:2] = (-1, negative[0] + negative[1] + 1)
    for arrays_ in (
        _with(tables, y_frequencies=lowered),
        _with(tables, y_frequencies=negative),
        _with(tables, y_frequencies=tables.y.frequencies[:-1]),
        _with(tables, y_ranges=tables.y.ranges - 1000),
        _with(tables, z_ranges=tables.z.ranges[:0]),
        _with(tables, z_ranges=tables.z.ranges.astype(np.int64)),
        _with(tables, y_boundaries=tables.boundaries[::-1]),
        {"y.ranges": tables.y.ranges},
    ):
        with pytest.raises(CheckpointError, match=r"coding tables: .*export the model again"):
            Tables.from_arrays(arrays_)


def test_a_diverged_prior_is_refused_by_channel() -> None:
    with pytest.raises(CheckpointError, match="channel 2"):
        tables_of(np.array([1, 2, np.nan, 1], np.float32))
