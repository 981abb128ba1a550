"""The parts of a run that need no engine: objective, learning rate, quantisation noise."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpcm_scale.config import LossConfig, OptimizerConfig, load_run
from hpcm_scale.errors import ConfigError
from hpcm_scale.models.codec_network import Output
from hpcm_scale.models.zoo import model_config
from hpcm_scale.training.engine import deepspeed_config
from hpcm_scale.training.loss import RateDistortion
from hpcm_scale.training.lr_schedule import learning_rate
from hpcm_scale.training.noise import Noise
from hpcm_scale.units import psnr


def test_the_objective_is_the_papers():
    x, x_hat = torch.rand(2, 3, 8, 16), torch.rand(2, 3, 8, 16)
    bits = torch.tensor([[1.0, 2.0, 3.0, 4.0], [10.0, 20.0, 30.0, 40.0]])
    objective = RateDistortion(LossConfig(lmbda=0.013))
    rows = objective.per_image(Output(x_hat, bits), x)
    for image, row in enumerate(rows):
        figures = dict(zip(objective.figure_names(3), row.tolist(), strict=True))
        squared = ((x[image] * 255 - x_hat[image] * 255) ** 2).mean().item()
        bpp = bits[image].sum().item() / 128
        assert figures["loss"] == pytest.approx(0.013 * squared + bpp, rel=1e-5)
        assert figures["bpp"] == pytest.approx(bpp)
        assert figures["bpp_z"] == pytest.approx(bits[image, 3].item() / 128)
        assert figures["bpp_y_s2"] == pytest.approx(bits[image, 1].item() / 128)
        assert psnr(figures["mse"]) == pytest.approx(10 * np.log10(255**2 / squared), abs=1e-4)


def test_a_network_with_one_scale_reports_one_rate_of_y():
    x, bits = torch.rand(1, 3, 8, 16), torch.tensor([[256.0, 128.0]])
    objective = RateDistortion(LossConfig())
    (row,) = objective.per_image(Output(x, bits), x)
    figures = dict(zip(objective.figure_names(1), row.tolist(), strict=True))
    assert figures["mse"] == 0
    assert (figures["bpp_y_s1"], figures["bpp_z"], figures["bpp"]) == (2, 1, 3)


@given(st.integers(0, 20), st.integers(50, 500), st.floats(0, 0.5))
def test_the_learning_rate_rises_holds_and_falls_to_nothing(warmup, steps, decay):
    config = OptimizerConfig(lr=1.0, warmup_steps=warmup, decay_fraction=decay)
    rates = np.array([learning_rate(config, step, steps) for step in range(steps)])
    assert (np.diff(rates[: warmup + 1]) >= 0).all()
    assert rates.max() == 1.0
    assert (np.diff(rates[warmup:]) <= 0).all()
    falling = np.flatnonzero(rates[warmup:] < 1)
    assert len(falling) <= decay * steps
    if decay * steps >= 2:
        assert 0 < rates[-1] <= 1 / (decay * steps) + 1e-9


def test_the_papers_steps_of_the_learning_rate():
    config = OptimizerConfig(lr=1e-4, schedule="step")
    at = {0: 1e-4, 1_599_999: 1e-4, 1_600_000: 2e-5, 1_800_000: 5e-6, 1_999_999: 1e-6}
    for step, rate in at.items():
        assert learning_rate(config, step, 2_000_000) == pytest.approx(rate)


@given(st.integers(0, 20), st.integers(30, 500), st.floats(0, 1))
def test_the_cosine_falls_from_the_peak_to_its_share(warmup, steps, final):
    config = OptimizerConfig(
        lr=1.0, warmup_steps=warmup, schedule="cosine", final_lr_fraction=final
    )
    rates = np.array([learning_rate(config, step, steps + 1) for step in range(steps + 1)])
    assert rates[warmup] == pytest.approx(1)
    assert (np.diff(rates[warmup:]) <= 1e-12).all()
    middle = learning_rate(config, (warmup + steps + 1) / 2, steps + 1)
    assert middle == pytest.approx((1 + final) / 2)
    assert final - 1e-9 <= rates[-1] < final + 0.03


def test_ms_ssim_is_weighed_as_the_papers_do():
    x = torch.rand(1, 3, 192, 192)
    objective = RateDistortion(LossConfig(distortion="ms-ssim", lmbda=8.73))
    names = objective.figure_names(1)
    bits = torch.tensor([[192.0 * 192, 0.0]])
    (same,) = objective.per_image(Output(x, bits), x)
    assert dict(zip(names, same.tolist(), strict=True))["loss"] == pytest.approx(1, abs=1e-3)
    (other,) = objective.per_image(Output((x + 0.3 * torch.rand_like(x)) / 1.3, bits), x)
    figures = dict(zip(names, other.tolist(), strict=True))
    assert figures["ms_ssim"] < 0.99
    assert figures["loss"] == pytest.approx(1 + 8.73 * (1 - figures["ms_ssim"]), rel=1e-5)


def noise(rank: int, world: int) -> Noise:
    return Noise(model_config("base", width=0.025), 64, 7, rank, world)


@pytest.mark.parametrize("world", [2, 4])
def test_noise_does_not_depend_on_the_layout(world):
    whole = noise(0, 1)(step=5, rows=range(8))
    for rank in range(world):
        own = noise(rank, world)
        for row in range(8 // world):
            parts = own(step=5, rows=range(row, row + 1))
            for part, all_rows in zip(parts, whole, strict=True):
                assert torch.equal(part[0], all_rows[row * world + rank])


def test_noise_is_uniform_around_zero_and_new_at_every_step():
    first, second = (noise(0, 1)(step, range(8))[0] for step in (0, 1))
    assert not torch.equal(first, second)
    assert first.min() >= -0.5
    assert first.max() < 0.5
    assert abs(first.mean()) < 4 / (12 * first.numel()) ** 0.5  # four standard errors


@pytest.mark.parametrize(
    ("change", "world", "message"),
    [
        ("batch=5", 2, "batch: 5 cannot be shared by 2 ranks"),
        ("micro_batch=3", 2, "micro_batch: 3 does not divide the 4 crops of a rank"),
        ("deepspeed=zero9", 1, "deepspeed: 'zero9' is not one of zero0"),
    ],
)
def test_what_cannot_be_spread_over_the_ranks_is_refused(tmp_path, change, world, message):
    (tmp_path / "run.yaml").write_text("{name: a, steps: 1, batch: 8, data: {train: x}}")
    run = load_run(tmp_path / "run.yaml", [change])
    with pytest.raises(ConfigError) as caught:
        deepspeed_config(run, world)
    assert message in str(caught.value)
