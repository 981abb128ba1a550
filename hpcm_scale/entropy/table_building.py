"""From a network's densities to its frozen coding tables, in float64."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import erfc, expit, gammaincc, gammaincinv, ndtr, ndtri

from hpcm_scale.entropy.tables import TOTAL, Tables, TableSet
from hpcm_scale.errors import CheckpointError
from hpcm_scale.models.codec_network import CodecNetwork
from hpcm_scale.models.density import SHAPE, FactorizedPrior, Gaussian, HyperPrior, ZPrior

TAIL = 1e-6
"""Mass that an escape symbol has, both tails together; at least that where tables reach further."""
NORMAL_TAIL = 1e-9
"""Mass beyond the tables of the normal density: the smallest likelihood it gives."""
LARGEST_Z_SCALE = 1024.0
"""Learned z scales beyond are coded with this one, which keeps a table under 2^14 symbols."""
LARGEST_Z_RANGE = 4096
"""Symbols to either side of the median that a table of the factorised density has at most."""
OFFSETS = np.array([*np.arange(1, 32) / 64, *(31 / 64 + np.arange(1, 4) / 256)], np.float32)
"""Boundaries of |mean − round(mean)|, 0 to ½: closer by ½, where at small scales the likeliest
symbol changes."""
NODES = 8
"""Offsets inside an interval whose masses are averaged into its table."""


@dataclass(frozen=True)
class Kind:
    """Parameters of the tables of one family of densities."""

    least: float
    """Scale of the first table; smaller ones are coded as this one."""
    largest: float
    """Scale of the last table; larger ones are coded as this one."""
    count: int
    """Tables, log-spaced between the two."""
    upper: Callable[[np.ndarray], np.ndarray]
    """Mass above v ≥ 0 at scale 1."""
    least_escape: float
    """Smallest mass of an escape symbol."""
    quantile: float
    """Where the table of scale 1 ends, on either side."""

    def levels(self) -> np.ndarray:
        """(count,) float64: the largest scale that each y table serves."""
        return np.exp(np.linspace(math.log(self.least), math.log(self.largest), self.count))

    def middles(self) -> np.ndarray:
        """(count,) float64: the scale whose density a table has."""
        levels = self.levels()
        # The middle of the scales a table serves: a quarter of the loss of their largest.
        return np.append(levels[0], np.sqrt(levels[:-1] * levels[1:]))


GENERALIZED = Kind(
    least=0.12,
    largest=64.0,
    count=60,
    upper=lambda v: 0.5 * gammaincc(1 / SHAPE, v**SHAPE),
    least_escape=0.0,
    quantile=gammaincinv(1 / SHAPE, 1 - TAIL) ** (1 / SHAPE),
)
"""The generalised Gaussian of shape 1.5 (arXiv 2507.19125)."""


def gaussian(least: float) -> Kind:
    """The normal density, its tables as close as those of `GENERALIZED`, to CompressAI's 256."""
    ratio = math.log(GENERALIZED.largest / GENERALIZED.least) / (GENERALIZED.count - 1)
    return Kind(
        least,
        largest=256.0,
        count=1 + math.ceil(math.log(256.0 / least) / ratio),
        upper=lambda v: 0.5 * erfc(v / math.sqrt(2)),
        least_escape=TAIL,
        quantile=float(-ndtri(NORMAL_TAIL / 2)),
    )


def build_tables(network: CodecNetwork) -> Tables:
    """Freeze the coding tables of a network's densities.

    Raises:
        CheckpointError: if a parameter of the z prior is not a finite number.
    """
    z = z_tables(network.z_prior)
    density = network.density
    kind = gaussian(density.scale_bound) if isinstance(density, Gaussian) else GENERALIZED
    boundaries = kind.levels()[:-1].astype(np.float32)
    if network.centred:
        return Tables(boundaries, y_tables(kind), z)
    return Tables(boundaries, offset_tables(kind), z, OFFSETS)


def y_tables(kind: Kind) -> TableSet:
    """Tables of symbol = round(y − mean), one per interval of scales."""
    return _table_set(kind, kind.middles(), kind.levels())


def offset_tables(kind: Kind) -> TableSet:
    """Tables of normal symbols that lie around 0 to ½, one per interval of scales and offsets.

    The symbols are those of round(y) − round(mean), signed so that the mean lies above 0.
    """
    edges = np.concatenate([[0.0], OFFSETS, [0.5]])
    nodes = (np.arange(NODES) + 0.5) / NODES
    inside = edges[:-1, None] + np.diff(edges)[:, None] * nodes  # (K, nodes)
    ranges, tables = [], []
    for scale, largest in zip(kind.middles(), kind.levels(), strict=True):
        r = math.ceil(largest * kind.quantile + 0.5)
        at = (np.arange(-r, r + 2) - 0.5 - inside[..., None]) / scale  # (K, nodes, 2r + 2)
        lower, upper = at[..., :-1], at[..., 1:]
        # Each side from its own tail: differences of values near 1 would lose the far symbols.
        mass = np.where(lower > 0, ndtr(-lower) - ndtr(-upper), ndtr(upper) - ndtr(lower))
        beyond = np.maximum(ndtr(at[..., 0]) + ndtr(-at[..., -1]), TAIL)
        for row in np.concatenate([mass, beyond[..., None]], axis=-1).mean(axis=1):
            ranges.append(r)
            tables.append(_integers(row, int(row.argmax())))
    return TableSet(np.array(ranges, np.int32), np.concatenate(tables))


def z_tables(prior: HyperPrior) -> TableSet:
    """Tables of the symbols of z, one per hyper channel.

    Raises:
        CheckpointError: if a parameter is not a finite number.
    """
    channels = prior.centre.shape[1]
    for name, parameter in prior.named_parameters():
        finite = parameter.isfinite().view(channels, -1).all(1).tolist()
        if not all(finite):
            raise CheckpointError(
                f"z_prior.{name}: channel {finite.index(False)} is not a finite number; the "
                "training diverged, export an earlier checkpoint"
            )
    if isinstance(prior, FactorizedPrior):
        return _factorized_tables(prior)
    assert isinstance(prior, ZPrior)  # there are two
    scales = prior.scale.detach().double().cpu().numpy().ravel()
    bounded = np.clip(scales, GENERALIZED.least, LARGEST_Z_SCALE)
    return _table_set(GENERALIZED, bounded, bounded)


def _factorized_tables(prior: FactorizedPrior) -> TableSet:
    """Symbols around each median, as far as all but `TAIL` of the density reaches."""
    reach = 64
    while True:
        below, mass, above = _factorized_masses(prior, reach)
        # (N, reach): mass beyond −r and beyond r, r = 0, 1, ...
        lower = below[:, None] + np.cumsum(mass, axis=1)[:, reach - 1 :: -1]
        upper = above[:, None] + np.cumsum(mass[:, ::-1], axis=1)[:, reach - 1 :: -1]
        fits = lower + upper <= TAIL
        if reach >= LARGEST_Z_RANGE or fits.any(axis=1).all():
            break
        reach *= 2
    ranges, tables = [], []
    for c, channel in enumerate(mass):
        r = int(fits[c].argmax()) if fits[c].any() else reach - 1
        row = np.append(channel[reach - r : reach + r + 1], lower[c, r] + upper[c, r])
        ranges.append(r)
        tables.append(_integers(row, int(row.argmax())))
    return TableSet(np.array(ranges, np.int32), np.concatenate(tables))


def _factorized_masses(
    prior: FactorizedPrior, reach: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mass below, of each symbol −reach..reach around the median (N, 2·reach + 1), and above."""
    exact = copy.deepcopy(prior).double().cpu()
    places = torch.arange(-reach, reach + 2, dtype=torch.float64) - 0.5
    with torch.no_grad():
        logits = exact.logits(exact.quantiles[:, :, 1:2] + places)[:, 0].numpy()
    lower, upper = logits[:, :-1], logits[:, 1:]
    # In the tail that is nearer, as the density does.
    side = np.where(lower + upper > 0, -1.0, 1.0)
    mass = np.abs(expit(side * upper) - expit(side * lower))
    return expit(lower[:, 0]), mass, expit(-upper[:, -1])


def _table_set(kind: Kind, scales: np.ndarray, largest: np.ndarray) -> TableSet:
    """One table per density scale (T,), reaching the tails of the largest scale (T,) it serves."""
    ranges = np.ceil(largest * kind.quantile).astype(np.int32)
    tables = [_frequencies(kind, scale, r) for scale, r in zip(scales, ranges, strict=True)]
    return TableSet(ranges, np.concatenate(tables))


def _frequencies(kind: Kind, scale: float, r: int) -> np.ndarray:
    """(2r + 2,) int32, every one at least 1, of sum 2^24: symbols −r..r, then the escape."""
    edges = (np.arange(-r, r + 2) - 0.5) / scale
    # Each side from its own tail: differences of values near 1 would lose the far symbols.
    upper = kind.upper(np.abs(edges))
    mass = np.abs(np.diff(upper))
    mass[r] = 1 - 2 * upper[r + 1]
    return _integers(np.append(mass, max(2 * upper[-1], kind.least_escape)), r)


def _integers(mass: np.ndarray, spare: int) -> np.ndarray:
    """Masses (S,) as frequencies, int32; what rounding leaves over goes to index `spare`."""
    frequencies = np.floor(mass / mass.sum() * (TOTAL - mass.size)).astype(np.int64) + 1
    frequencies[spare] += TOTAL - frequencies.sum()
    return frequencies.astype(np.int32)
