"""What parabolas make of laws that are known: nothing where they are symmetric, else a bias."""

import numpy as np
import pytest

from hpcm_scale.scaling.approach_two import displacement
from hpcm_scale.scaling.isoflop import Cost
from hpcm_scale.scaling.power_law import PowerLaw

SIX = Cost(6.0, 1.0, 0.0)


def law(alpha: float, beta: float) -> PowerLaw:
    return PowerLaw(1.8, (480.0, 2085.0), (alpha, beta))


@pytest.mark.parametrize("reach", [2, 4, 16])
def test_a_symmetric_law_is_not_displaced(reach):
    found = displacement(law(0.35, 0.35), SIX, 1e18, 1e22, reach)
    assert found.size == pytest.approx(1, abs=1e-6)
    assert found.exponent == pytest.approx(found.exact, abs=1e-6) == pytest.approx(0.5)


def test_the_wider_the_sizes_the_larger_the_displacement():
    # With α < β the loss rises faster above the optimum, where data are short, than below.
    sizes = [displacement(law(0.3, 0.4), SIX, 1e18, 1e22, reach).size for reach in (1.5, 4, 16)]
    assert 1 > sizes[0] > sizes[1] > sizes[2]
    assert sizes[0] == pytest.approx(1, abs=0.01)
    mirrored = [displacement(law(0.4, 0.3), SIX, 1e18, 1e22, reach).size for reach in (4, 16)]
    assert np.allclose(mirrored, [1 / size for size in sizes[1:]], rtol=0.02)


def test_only_centres_that_drift_bend_the_exponent():
    still, moving = (
        displacement(law(0.3, 0.4), SIX, 1e18, 1e22, 16, drift) for drift in (1.0, 4.0)
    )
    assert still.exponent == pytest.approx(still.exact, abs=1e-9)
    assert abs(moving.exponent - moving.exact) > 0.005
