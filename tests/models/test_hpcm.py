"""The network: what a step may see, that all of it trains, and what it refuses."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcm_scale.errors import ConfigError, DataError
from hpcm_scale.models.hpcm import HPCM
from hpcm_scale.models.zoo import build, model_config

VARIANTS = ("base", "phi")


def small(variant: str = "base", **overrides) -> HPCM:
    """A narrow network as training would start it, in float64."""
    torch.manual_seed(0)
    return build(model_config(variant, width=0.05, overrides=overrides)).double()


def coded(network: HPCM, params: torch.Tensor, y: torch.Tensor):
    """(scale, mean) of every step, and ŷ, when `y` is coded under `params`."""
    targets = network.partition.split(y)
    seen = []

    def code(step, scale, mean):
        seen.append(torch.cat([scale, mean], dim=1))
        return (targets[step] - mean).round() + mean

    with torch.no_grad():
        return seen, network.code_steps(params, code)


@settings(deadline=None, max_examples=12)
@given(
    st.sampled_from(VARIANTS),
    st.sampled_from(["2-3-6", "2-3-3", "2-3-12", "4-3-6"]),
    st.sampled_from(["aligned", "official", "no hierarchy"]),
    st.data(),
)
def test_a_step_reads_no_latent_it_has_yet_to_code(variant, schedule, alignment, data):
    kind = (
        {"hierarchical": False, "windows": (16, 16, 16)}
        if alignment == "no hierarchy"
        else {"hyper_alignment": alignment}
    )
    network = small(variant, schedule=schedule, **kind)
    m = network.config.latent_channels
    params = torch.randn(1, 2 * m, 16, 16, dtype=torch.float64)
    y = 3 * torch.randn(1, m, 16, 16, dtype=torch.float64)
    steps = len(network.partition.schedule.steps)
    k = data.draw(st.integers(0, steps - 1), label="step")
    changed = network.partition.split(y)
    for part in changed[k:]:
        part += 5 * torch.randn_like(part)
    before, _ = coded(network, params, y)
    after, _ = coded(network, params, network.partition.join(changed))
    for step in range(k + 1):
        assert torch.equal(before[step], after[step])
    if k < steps - 1:
        assert not torch.equal(before[k + 1], after[k + 1])  # and the past is in fact read


@pytest.mark.parametrize("variant", VARIANTS)
def test_encoder_and_decoder_see_the_same_parameters(variant):
    network = small(variant)
    m = network.config.latent_channels
    params = torch.randn(3, 2 * m, 16, 32, dtype=torch.float64)
    encoder, y_hat = coded(network, params, 3 * torch.randn(3, m, 16, 32, dtype=torch.float64))
    values = network.partition.split(y_hat)
    decoder = []

    def read(step, scale, mean):
        decoder.append(torch.cat([scale, mean], dim=1))
        return values[step]

    with torch.no_grad():
        decoded = network.code_steps(params, read)
    assert torch.equal(decoded, y_hat)
    assert all(torch.equal(a, b) for a, b in zip(encoder, decoder, strict=True))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_every_parameter(checkpointing):
    network = small()
    network.checkpoint_activations(checkpointing)
    with torch.no_grad():
        network.h_a[-1][-1].weight.mul_(50)  # a fresh z rounds to 0, which would hide h_s
    x = torch.rand(3, 3, 256, 256, dtype=torch.float64)
    m, n = network.config.latent_channels, network.config.hyper_channels
    noise = (torch.rand(3, m, 16, 16) - 0.5, torch.rand(3, n, 4, 4) - 0.5)
    output = network(x, tuple(part.double() for part in noise))
    (output.bits.sum() + output.x_hat.square().sum()).backward()
    # Softmax is blind to a constant, so a key's bias has no gradient but rounding errors.
    still = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert [name for name in still if not name.endswith("key.bias")] == []


def test_checkpointing_changes_no_gradient():
    gradients = []
    x = torch.rand(1, 3, 256, 256, dtype=torch.float64)
    for every in (False, True, 3):
        network = small()
        network.checkpoint_activations(every)
        output = network(x)
        (output.bits.sum() + output.x_hat.square().sum()).backward()
        gradients.append([p.grad for p in network.parameters()])
    for other in gradients[1:]:
        assert all(torch.equal(a, b) for a, b in zip(gradients[0], other, strict=True))


def test_the_bit_map_adds_up_to_the_bits_of_y():
    network = small().eval()
    with torch.no_grad():
        output = network(torch.rand(2, 3, 256, 512, dtype=torch.float64), with_map=True)
    assert output.bit_map.shape == (2, 16, 32)
    expected = output.bits[:, :-1].sum(1)
    assert torch.allclose(output.bit_map.flatten(1).sum(1), expected, rtol=1e-9)


def test_a_batch_is_its_images():
    network = small().eval()
    x = torch.rand(2, 3, 256, 512, dtype=torch.float64)
    with torch.no_grad():
        together = network(x)
        alone = [network(image[None]) for image in x]
    assert torch.allclose(together.bits, torch.cat([one.bits for one in alone]), rtol=1e-9)


@pytest.mark.parametrize("alignment", ["aligned", "official"])
def test_a_network_that_has_coded_can_be_trained(alignment):
    network = small(hyper_alignment=alignment)
    x = torch.rand(1, 3, 256, 768, dtype=torch.float64)  # a size no other test has made tables for
    with torch.inference_mode():
        network(x)
    network(x).bits.sum().backward()
    assert network.steps[0].scale.grad is not None


def test_rates_are_summed_in_single_precision_under_bf16():
    network = small().to(torch.bfloat16).eval()
    x = torch.rand(1, 3, 256, 256)
    with torch.no_grad():
        half = network(x.to(torch.bfloat16))
        single = network.float()(x)
    assert half.bits.dtype == torch.float32
    assert torch.allclose(half.bits, single.bits, rtol=0.05)


def test_memory_layout_changes_nothing():
    network = small().eval()
    x = torch.rand(1, 3, 256, 256, dtype=torch.float64)
    with torch.no_grad():
        contiguous = network.to(memory_format=torch.contiguous_format)(x.contiguous())
        channels_last = network.to(memory_format=torch.channels_last)(
            x.contiguous(memory_format=torch.channels_last)
        )
    assert torch.allclose(contiguous.x_hat, channels_last.x_hat, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("variant", "multiple"), [("base", 256), ("phi", 128)])
def test_sides_the_grids_and_windows_cannot_divide_are_refused(variant, multiple):
    network = small(variant)
    assert network.image_multiple == multiple
    with pytest.raises(DataError, match=f"not multiples of {multiple}"):
        network(torch.zeros(1, 3, multiple, multiple + 32, dtype=torch.float64))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"latent_channels": 30}, "latent_channels: 30 is not a multiple of 8"),
        ({"heads": 7}, "heads: 7 does not divide 2M = 640"),
        ({"partial_ratio": 200}, "partial_ratio: 200 is above the 96 channels"),
        ({"depth": 3}, "depth: unknown key"),
        ({"heads": 0}, "heads: 0: input should be greater than 0"),
        ({"latent_channels": 24, "heads": 2, "schedule": "2-3-12"}, "24 is not a multiple of 16"),
    ],
)
def test_parts_that_do_not_fit_are_refused_by_name(overrides, message):
    with pytest.raises(ConfigError, match=message), torch.device("meta"):
        build(model_config("base", overrides=overrides))


@given(st.floats(0.01, 2.5), st.floats(0.2, 2))
def test_the_dials_always_give_a_network_whose_parts_fit(width, depth):
    with torch.device("meta"):
        network = build(model_config("base", width=width, depth=depth))
    head_size = 2 * network.config.latent_channels / network.config.heads
    assert network.config.latent_channels % 8 == 0
    assert 8 <= head_size <= 40  # Base has 20
