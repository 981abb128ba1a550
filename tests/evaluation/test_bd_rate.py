"""BD-rate on curves whose answer is known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcm_scale.errors import RunError
from hpcm_scale.evaluation.bd_rate import bd_rate

RATE = np.array([0.1, 0.2, 0.4, 0.8])
PSNR = np.array([28.0, 31.0, 33.5, 36.0])


@given(factor=st.floats(0.3, 3))
def test_scaling_every_rate_is_that_bd_rate(factor):
    assert bd_rate(RATE, PSNR, RATE * factor, PSNR) == pytest.approx(100 * (factor - 1), abs=1e-9)


def test_swapping_anchor_and_curve_inverts_the_ratio():
    other = PSNR + np.array([0.3, 0.5, 0.6, 0.4])
    there, back = bd_rate(RATE, PSNR, RATE, other), bd_rate(RATE, other, RATE, PSNR)
    assert there < 0 < back
    assert (1 + there / 100) * (1 + back / 100) == pytest.approx(1, abs=1e-12)


def test_only_the_shared_range_of_quality_counts():
    rate = np.array([0.1, 0.2, 0.4, 0.8, 100.0])
    longer = np.array([28.0, 31.0, 33.5, 36.0, 50.0])
    assert bd_rate(RATE, PSNR, 0.9 * rate[:4], longer[:4]) == pytest.approx(-10)
    assert abs(bd_rate(RATE, PSNR, rate, longer)) < 1


def test_curves_that_are_none_are_errors():
    with pytest.raises(RunError, match="share no range"):
        bd_rate(RATE, PSNR, RATE, PSNR + 20)
    with pytest.raises(RunError, match="does not rise with its rate"):
        bd_rate(RATE, PSNR, RATE, PSNR[::-1])
