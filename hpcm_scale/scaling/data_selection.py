"""Which points of which runs a law is fitted to. Every choice that a reader should know is told."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from hpcm_scale.runs.records import Run, SizePart
from hpcm_scale.scaling.power_law import NotFittable

SETTLED = 0.1
"""Fraction of a run's images before which its losses are left out: warm-up follows no power law."""
ROWS_PER_RUN = 8
"""Validation rows kept of a run, evenly spaced in log images: neighbours say the same thing."""


@dataclass(frozen=True)
class Design:
    """Points for a law, and what a reader must know about where they come from."""

    x: np.ndarray
    """(k, n): sizes; sizes and images; or FLOPs."""
    values: Mapping[str, np.ndarray]
    """(n,) of each metric, such as loss."""
    run: np.ndarray
    """(n,) int label of the run."""
    names: list[str]
    """(n) name of the run."""
    cautions: list[str] = field(default_factory=list)

    @classmethod
    def of_rows(
        cls,
        x: np.ndarray,
        rows: Sequence[tuple[Run, int]],
        run: np.ndarray,
        cautions: Sequence[str] = (),
    ) -> "Design":
        """Points that are validation rows: of each its run, and its index there."""
        values = {
            name: np.array([run.curve[name][i] for run, i in rows]) for name in rows[0][0].curve
        }
        return cls(x, values, run, [run.name for run, _ in rows], list(cautions))

    def metric(self, name: str) -> np.ndarray:
        """(n,) loss, bpp or mse at the points."""
        return self.values[name]


def sizes_of(runs: Sequence[Run], part: SizePart) -> np.ndarray:
    """(runs,) parameters counted as N."""
    return np.array([r.parameters[part] for r in runs], float)


def equal_images(runs: Sequence[Run], part: SizePart) -> Design:
    """Last rows of runs that saw the same number of images, the number that most sizes share.

    Failing three sizes at any one number, each size's longest runs, with a caution.
    """
    n, images = sizes_of(runs, part), np.array([r.curve["crops"][-1] for r in runs])
    chosen, cautions = np.zeros(len(runs), bool), []
    for amount in np.unique(images)[::-1]:
        near = np.abs(images / amount - 1) <= 0.01
        if len(set(n[near])) > len(set(n[chosen])):
            chosen = near
    if len(set(n[chosen])) < min(3, len(set(n))):
        chosen = images >= 0.99 * np.array([images[n == own].max() for own in n])
        cautions.append(
            f"sizes saw different numbers of images ({images.min():.4g} to {images.max():.4g}): "
            "L(N) mixes the effect of size with that of training"
        )
    elif not chosen.all():
        cautions.append(
            f"L(N) takes the {chosen.sum()} runs that saw {images[chosen].max():.4g} images; "
            f"{(~chosen).sum()} that saw another number are left out of it"
        )
    kept = np.flatnonzero(chosen).tolist()
    rows = [(runs[i], len(runs[i].curve["loss"]) - 1) for i in kept]
    return Design.of_rows(n[kept][None], rows, np.arange(len(kept)), cautions)


def _thinned(run: Run) -> list[int]:
    """Rows past warm-up, evenly spaced in log images, the last always among them."""
    images = run.curve["crops"]
    wanted = np.geomspace(SETTLED * images[-1], images[-1], ROWS_PER_RUN)
    settled = np.flatnonzero(images >= SETTLED * images[-1])
    return sorted({int(settled[np.abs(np.log(images[settled] / w)).argmin()]) for w in wanted})


MID_SCHEDULE = (
    "points inside a run are not the losses of shorter runs: the learning rate had not come down; "
    "exponents of images and FLOPs fitted to them are of the schedule as much as of the model"
)


def size_and_images(runs: Sequence[Run], part: SizePart) -> Design:
    """Points for L(N, D): last rows where runs of several lengths exist, else checkpoints too."""
    n, images = sizes_of(runs, part), np.array([r.curve["crops"][-1] for r in runs])
    lengths = len(np.unique(np.round(np.log(images) / 0.02)))
    if lengths >= 3 and len(set(n)) >= 3 and len(runs) >= 6:
        rows = [(r, len(r.curve["loss"]) - 1) for r in runs]
        return Design.of_rows(np.stack([n, images]), rows, np.arange(len(runs)))
    rows, labels = [], []
    for label, run in enumerate(runs):
        kept = _thinned(run)
        rows += [(run, i) for i in kept]
        labels += [label] * len(kept)
    x = np.array([[r.parameters[part], r.curve["crops"][i]] for r, i in rows], float).T
    return Design.of_rows(x, rows, np.array(labels), [MID_SCHEDULE])


def frontier(runs: Sequence[Run], part: SizePart) -> Design:
    """Points for L(C): the lowest loss any run had reached by each count of FLOPs.

    At either end only one size ran, and its own curve is not the frontier: the end segments are
    cut to the mean length, in log C, of those between (Hoffmann et al. 2022, approach 1).

    Raises:
        NotFittable: if fewer than three sizes ever lead.
    """
    rows = [(run, i) for run in runs for i in range(len(run.curve["loss"]))]
    labels = np.concatenate([[j] * len(run.curve["loss"]) for j, run in enumerate(runs)])
    c = np.array([run.curve["flops"][i] for run, i in rows])
    loss = np.array([run.curve["loss"][i] for run, i in rows])
    order = np.lexsort((loss, c))
    before = np.concatenate([[np.inf], np.minimum.accumulate(loss[order])[:-1]])
    lead = order[loss[order] < before]
    n = np.array([rows[i][0].parameters[part] for i in lead], float)
    leaders = len(set(n))
    if leaders < 3:
        raise NotFittable(
            f"{leaders} size{'s' if leaders > 1 else ''} ever lead{'' if leaders > 1 else 's'} in "
            "loss at equal FLOPs: that is no frontier (train the small sizes for longer)"
        )
    hand_overs = c[lead][1:][n[1:] != n[:-1]]
    first, last = hand_overs[0], hand_overs[-1]
    segment = (last / first) ** (1 / (leaders - 2))
    kept = lead[(c[lead] >= first / segment) & (c[lead] <= last * segment)]
    thin = []
    for label in np.unique(labels[kept]):
        own = kept[labels[kept] == label]
        picks = np.linspace(0, len(own) - 1, min(len(own), ROWS_PER_RUN)).round().astype(int)
        thin += own[picks].tolist()
    thin = np.array(sorted(thin, key=lambda i: c[i]))
    ended = all(rows[i][1] == len(rows[i][0].curve["loss"]) - 1 for i in thin)
    return Design.of_rows(
        c[thin][None], [rows[i] for i in thin], labels[thin], [] if ended else [MID_SCHEDULE]
    )
