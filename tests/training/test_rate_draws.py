"""Rates of crops: shared out evenly, and the same however a batch is spread over ranks."""

import torch

from hpcm_scale.config import LossConfig
from hpcm_scale.models.codec_network import Output
from hpcm_scale.training.loss import PIXEL_RANGE, RateDistortion
from hpcm_scale.training.rate_draws import RateDraws

RATES = (0.0018, 0.0067, 0.025, 0.0932)


def test_a_batch_has_its_rates_on_any_number_of_ranks():
    whole = RateDraws(RATES, 3, 8, 0, 1)(11, range(8))
    for world in (2, 4):
        parts = [RateDraws(RATES, 3, 8, r, world)(11, range(8 // world)) for r in range(world)]
        torch.testing.assert_close(torch.stack(parts, 1).flatten(), whole, rtol=0, atol=0)
    # Micro-batches are rows of the same batch.
    draws = RateDraws(RATES, 3, 8, 0, 1)
    torch.testing.assert_close(torch.cat([draws(11, range(4)), draws(11, range(4, 8))]), whole)


def test_every_part_of_the_range_has_its_turn():
    draws = RateDraws(RATES, 0, 4, 0, 1)
    for step in range(20):
        parts = (draws(step, range(4)) / 3 * 4).floor()
        assert sorted(parts.tolist()) == [0, 1, 2, 3]
    assert not torch.equal(draws(0, range(4)), draws(1, range(4)))


def test_one_rate_has_no_draws():
    assert RateDraws((), 0, 4, 0, 1)(0, range(4)) is None


def test_each_crop_is_weighed_by_its_own_lambda():
    x, bits = torch.zeros(2, 3, 8, 8), torch.full((2, 2), 64.0)
    output = Output(torch.full((2, 3, 8, 8), 0.1), bits)
    places = torch.tensor([0.0, 3.0])
    plain = RateDistortion(LossConfig(rate_balance=0), RATES).per_image(output, x, places)
    expected = torch.tensor([0.0018, 0.0932]) * PIXEL_RANGE**2 * 0.01 + 2
    torch.testing.assert_close(plain[:, 0], expected)
    # Balanced: by (middle of the range / λ)^½.
    balanced = RateDistortion(LossConfig(), RATES).per_image(output, x, places)
    middle = (0.0018 * 0.0932) ** 0.5
    weight = (middle / torch.tensor([0.0018, 0.0932])) ** 0.5
    torch.testing.assert_close(balanced[:, 0], expected * weight)
    torch.testing.assert_close(balanced[:, 1:], plain[:, 1:])
