"""One network for every rate: gain vectors, the places of rates, and what stays as it was."""

import pytest
import torch

from hpcm_scale.config import RunConfig
from hpcm_scale.errors import ConfigError
from hpcm_scale.models.codec_network import noise_shapes
from hpcm_scale.models.gains import Gains, lambdas_at
from hpcm_scale.models.principal_start import start_from_principal_components
from hpcm_scale.models.zoo import ARCHITECTURES, build, chosen_model, model_config, with_rates

RATES = (0.0018, 0.0067, 0.025, 0.0932)


def test_lambdas_lie_between_neighbours_by_logarithms():
    places = torch.tensor([0.0, 1.0, 1.5, 3.0], dtype=torch.float64)
    expected = [0.0018, 0.0067, (0.0067 * 0.025) ** 0.5, 0.0932]
    assert lambdas_at(RATES, places).tolist() == pytest.approx(expected)


def test_gains_rise_with_the_rate_and_are_one_at_the_centre():
    gains = Gains(5, RATES, centre=0.0067)
    at = gains(torch.tensor([0.0, 1.0, 1.5, 3.0]))
    assert at.shape == (4, 5, 1, 1)
    torch.testing.assert_close(at[1], torch.ones(5, 1, 1))
    torch.testing.assert_close(at[3, 0, 0, 0].item() ** 2, 0.0932 / 0.0067)
    assert (at.diff(dim=0) > 0).all()


@pytest.mark.parametrize("variant", ["base", "charm", "elic", "flic"])
def test_at_gains_of_one_the_network_is_that_of_one_rate(variant):
    config = model_config(variant, width=0.1 if variant == "base" else 0.25)
    one = build(config).eval()
    many = build(with_rates(config, RATES)).eval()
    many.load_state_dict(one.state_dict() | {"gains.logs": torch.zeros_like(many.gains.logs)})
    x = torch.rand(2, 3, 256, 256)
    with torch.no_grad():
        expected = one(x)
        got = many(x, places=torch.tensor([0.0, 2.6]))
    torch.testing.assert_close(got.x_hat, expected.x_hat)
    torch.testing.assert_close(got.bits, expected.bits)


def test_more_gain_codes_more_bits():
    network = build(with_rates(model_config("base", width=0.1), RATES)).eval()
    x = torch.rand(1, 3, 256, 256)
    with torch.no_grad():
        network.g_a[-1][0].weight *= 100  # as initialised, latents round to zero
        bits = [float(network(x, places=torch.tensor([p])).bits.sum()) for p in (0.0, 1.5, 3.0)]
    assert bits[0] < bits[1] < bits[2]


def test_every_gain_vector_in_use_gets_a_gradient():
    config = with_rates(model_config("base", width=0.1), RATES)
    network = build(config)
    noise = [torch.rand(shape) - 0.5 for shape in noise_shapes(config, 2, 256, 256)]
    output = network(torch.rand(2, 3, 256, 256), noise, places=torch.tensor([0.5, 3.0]))
    (output.x_hat.square().mean() + output.bits.sum() * 1e-5).backward()
    used = network.gains.logs.grad.abs().amax(1) > 0
    assert used.tolist() == [True, True, False, True]


@pytest.mark.parametrize("rates", [[0.01], [0.1, 0.01], [0.01, 0.01], [-1, 2]])
def test_rates_that_do_not_rise_are_refused(rates):
    with pytest.raises(ConfigError, match="rates"):
        with_rates(model_config("base"), rates)


def test_a_run_chooses_them():
    values = {"name": "r", "steps": 1, "data": {"train": "t"}, "model": {"rates": RATES}}
    assert chosen_model(RunConfig.model_validate(values).model).rates == RATES


def test_architectures_take_rates():
    for name in ARCHITECTURES:
        variant = {"hpcm": "base"}.get(name, name)
        with torch.device("meta"):
            network = build(with_rates(model_config(variant), RATES))
        assert network.gains.logs.shape == (4, network.config.latent_channels)


def test_fewer_context_channels_make_a_smaller_context_model():
    config = model_config("base", width=0.1, overrides={"context_channels": 16})
    network = build(config)
    assert network.steps[0].adaptor.weight.shape[:2] == (16, 3 * config.latent_channels)
    with torch.no_grad():
        assert network(torch.rand(1, 3, 256, 256)).x_hat.shape == (1, 3, 256, 256)
    with pytest.raises(ConfigError, match="context_channels"):
        model_config("charm", overrides={"context_channels": 16})


def test_a_start_from_principal_components_reconstructs():
    """Smooth pictures have few components: what is kept of them is nearly all."""
    torch.manual_seed(0)
    config = with_rates(model_config("compact", overrides={"latent_channels": 64}), RATES)
    network = build(config).eval()
    coarse = torch.rand(6, 3, 16, 16)
    crops = torch.nn.functional.interpolate(coarse, size=(256, 256), mode="bicubic").clamp(0, 1)
    with torch.no_grad():
        before = (network(crops).x_hat - crops).square().mean()
        start_from_principal_components(network, crops, 0.013)
        output = network(crops, places=torch.full((6,), 3.0))
        after = (output.x_hat - crops).square().mean()
    assert after < 1e-4 < before
    # Scales are of the latents' size, so that few symbols cost the 30 bits that one costs at most.
    symbols = crops[:, 0].numel() // 256 * 64
    assert output.bits.sum() / symbols < 15


def test_a_start_is_for_hpcm():
    with pytest.raises(ConfigError, match="HPCM"):
        start_from_principal_components(build(model_config("charm", width=0.25)), None, 0.01)
