"""Which points go into which law, and where a budget is best spent."""

import numpy as np
import pytest
from scipy import optimize

from hpcm_scale.runs.records import read_runs
from hpcm_scale.scaling.data_selection import equal_images, frontier, size_and_images
from hpcm_scale.scaling.isoflop import Cost, cost_of, isoflop, optimal_size
from hpcm_scale.scaling.laws import fit_law
from hpcm_scale.scaling.power_law import NotFittable

SIZES = (100_000, 200_000, 400_000, 800_000, 1_600_000, 4_000_000)


def ladder(write_run, sizes=SIZES, **options):
    for n in sizes:
        folder = write_run(n, **options).parent
    return list(read_runs([folder]).runs)


def test_no_run_was_below_a_frontier_point_for_fewer_flops(write_run):
    runs = ladder(write_run, images=120_000, rows=40)
    design = frontier(runs, "total")
    for c, loss in zip(design.x[0], design.metric("loss"), strict=True):
        for run in runs:
            assert not ((run.curve["flops"] <= c) & (run.curve["loss"] < loss)).any()
    assert len(set(design.names)) >= 3


def test_the_frontier_leaves_out_where_only_one_size_ran(write_run):
    runs = ladder(write_run, images=120_000, rows=40)
    smallest = min(runs, key=lambda r: r.parameters["total"])
    assert frontier(runs, "total").x.min() > 2 * smallest.curve["flops"].min()


def test_a_frontier_of_two_sizes_is_refused(write_run):
    runs = ladder(write_run, sizes=(100_000, 200_000), images=120_000)
    with pytest.raises(NotFittable, match="2 sizes ever lead"):
        frontier(runs, "total")


def test_size_laws_take_only_runs_that_saw_the_same_images(write_run):
    ladder(write_run, images=40_000)
    runs = ladder(write_run, sizes=SIZES[:2], images=80_000)
    design = equal_images(runs, "total")
    assert set(design.metric("crops")) == {40_000}
    assert len(design.names) == len(SIZES)
    assert "2 that saw another number are left out" in design.cautions[0]


def test_runs_of_several_lengths_are_preferred_to_checkpoints(write_run):
    for images in (10_000, 40_000, 160_000):
        runs = ladder(write_run, images=images)
    design = size_and_images(runs, "total")
    assert len(design.run) == len(set(design.run)) == 18
    assert not design.cautions
    assert (design.x[1] == design.metric("crops")).all()


def test_checkpoints_carry_their_run_and_a_caution(write_run):
    runs = ladder(write_run, images=80_000, noise=0.001)
    design = size_and_images(runs, "total")
    assert "not the losses of shorter runs" in design.cautions[0]
    assert len(set(design.run)) == len(SIZES)
    assert design.x[1].min() >= 0.09 * 80_000
    fit = fit_law(design.x, design.metric("loss"), design.run)
    for name, value in {"alpha": 0.35, "beta": 0.4}.items():
        interval = fit.interval(name)
        assert interval.low < value < interval.high
    assert fit.degrees_of_freedom == len(SIZES) - 1


def test_the_optimal_size_is_the_minimum_found_numerically():
    cost = Cost(2.5e4, 0.9, 0.0)
    e, a, alpha, b, beta = 1.2, 60.0, 0.35, 40.0, 0.4
    for flops in (1e14, 1e17, 1e20):
        size = optimal_size(flops, cost, a, alpha, b, beta)
        found = optimize.minimize_scalar(
            lambda v, c=flops: (
                e
                + a * np.exp(-alpha * v)
                + b * (c / (cost.factor * np.exp(cost.power * v))) ** -beta
            ),
            bounds=(5, 40),
            method="bounded",
            options={"xatol": 1e-10},
        )
        assert np.log(size) == pytest.approx(found.x, abs=1e-4)


def test_cost_is_what_was_counted(write_run):
    cost = cost_of(ladder(write_run), "total")
    assert cost.factor == pytest.approx(3e4, rel=1e-6)
    assert cost.power == pytest.approx(1, abs=1e-9)
    assert cost.worst < 1e-9


def test_isoflop_finds_the_exponent_of_the_law_it_was_given(write_run):
    runs = ladder(
        write_run, sizes=np.geomspace(5e4, 5e6, 9).astype(int).tolist(), images=400_000,
        rows=60, noise=0.0, truth=(1.2, 60.0, 0.4, 40.0, 0.4),
    )  # fmt: skip
    view = isoflop(runs, "total", confidence=0.95, draws=200)
    # N_opt ∝ C^(beta / (alpha + beta)); the parabola is only an approximation of the curve.
    assert view.exponent == pytest.approx(0.5, abs=0.05)
    cost = cost_of(runs, "total")
    for piece in view.slices:
        if piece.optimum is not None:
            true = optimal_size(piece.flops, cost, 60.0, 0.4, 40.0, 0.4)
            assert piece.optimum == pytest.approx(true, rel=0.25)


def test_isoflop_refuses_where_no_size_is_bracketed(write_run):
    runs = ladder(write_run, truth=(1.2, 6000.0, 0.7, 0.01, 0.4))
    view = isoflop(runs, "total", confidence=0.95, draws=100)
    assert view.exponent is None
    assert "0 of" in view.refusal
