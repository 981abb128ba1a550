"""The nine peers, narrow: what a coding step may see, and that training reaches every parameter."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hpcm_scale.errors import DataError
from hpcm_scale.models.codec_network import CodecNetwork, noise_shapes
from hpcm_scale.models.zoo import build, model_config
from hpcm_scale.weights.peers import PEERS

VARIANTS = sorted(variant for layout in PEERS.values() for variant in layout.variants)


def small(variant: str, seed: int = 0) -> CodecNetwork:
    """A narrow network as training would start it, in float64."""
    torch.manual_seed(seed)
    return build(model_config(variant, width=0.1)).double()


def latents(network: CodecNetwork, batch: int = 1) -> tuple[Tensor, Tensor]:
    """(h_s(ẑ), y) of an image, as random as they are large enough not to round to nothing."""
    sides = (network.image_multiple, 2 * network.image_multiple)
    y, z = noise_shapes(network.config, batch, *sides)
    with torch.no_grad():
        params = network.h_s(3 * torch.randn(z, dtype=torch.float64))
    return params, 3 * torch.randn(y, dtype=torch.float64)


def walked(
    network: CodecNetwork, params: Tensor, value_of: Callable[[int, Tensor], Tensor]
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """What a callback sees at every step, what it returned, and ŷ."""
    seen, coded = [], []

    def code(step: int, scale: Tensor, mean: Tensor) -> Tensor:
        assert step == len(seen)
        seen.append(torch.cat([scale, mean], dim=1))
        coded.append(value_of(step, mean))
        return coded[-1]

    with torch.no_grad():
        return seen, coded, network.code_steps(params, code)


def encoded(network: CodecNetwork, params: Tensor, y: Tensor):
    """`walked` by an encoder of `y`."""
    targets = network.partition.split(y)
    if network.centred:
        return walked(network, params, lambda k, mean: (targets[k] - mean).round() + mean)
    return walked(network, params, lambda k, mean: targets[k].round())


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_reads_no_latent_it_has_yet_to_code(variant):
    network = small(variant)
    params, y = latents(network)
    before, _, _ = encoded(network, params, y)
    assert len(before) == len(network.partition.step_scales)
    # Of STF all slices read the first ones alone.
    read = min(getattr(network.config, "support", len(before)), len(before) - 1)
    for k in range(len(before)):
        changed = network.partition.split(y)
        for part in changed[k:]:
            part += 5 * torch.randn_like(part)
        after, _, _ = encoded(network, params, network.partition.join(changed))
        assert all(torch.equal(a, b) for a, b in zip(before[: k + 1], after[: k + 1], strict=True))
        if k < read:
            assert not torch.equal(before[k + 1], after[k + 1])


@pytest.mark.parametrize("variant", VARIANTS)
def test_encoder_and_decoder_see_the_same_parameters(variant):
    network = small(variant)
    params, y = latents(network, batch=2)
    encoder, coded, y_hat = encoded(network, params, y)
    decoder, _, decoded = walked(network, params, lambda k, mean: coded[k])
    assert torch.equal(decoded, y_hat)
    assert all(torch.equal(a, b) for a, b in zip(encoder, decoder, strict=True))


@pytest.mark.parametrize("checkpointing", [pytest.param(False, marks=pytest.mark.long), True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_training_reaches_every_parameter(variant, checkpointing):
    network = small(variant)
    network.checkpoint_activations(checkpointing)
    side = network.image_multiple
    x = torch.rand(2, 3, 2 * side, side, dtype=torch.float64)
    y, z = noise_shapes(network.config, 2, 2 * side, side)
    with torch.no_grad():  # as initialised, all latents round to 0, which would hide what reads ŷ
        for transform in (network.g_a, network.h_a):
            [p for p in transform.parameters() if p.dim() == 4][-1].mul_(50)
    noise = (torch.rand(y).double() - 0.5, torch.rand(z).double() - 0.5)
    output = network(x, noise)
    assert output.x_hat.shape == x.shape
    assert output.bits.shape == (2, 2)
    assert output.auxiliary is not None
    (output.bits.sum() + output.x_hat.square().sum() + output.auxiliary).backward()
    gradients = {name: p.grad for name, p in network.named_parameters()}
    assert [name for name, g in gradients.items() if g is None or not g.any()] == []
    assert all(g is not None and g.isfinite().all() for g in gradients.values())


@pytest.mark.parametrize("variant", VARIANTS)
def test_checkpointing_changes_no_gradient(variant):
    found = []
    for every in (False, True):
        network = small(variant).float()  # as trained, by oneDNN where there is a CPU
        network.checkpoint_activations(every)
        side = network.image_multiple
        torch.manual_seed(1)
        x = torch.rand(1, 3, side, side).contiguous(memory_format=torch.channels_last)
        output = network(x)
        (output.bits.sum() + output.x_hat.square().sum()).backward()
        found.append([p.grad for p in network.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("variant", VARIANTS)
def test_unsuited_sides_are_refused(variant):
    network = small(variant)
    side = network.image_multiple
    with pytest.raises(DataError, match=f"not multiples of {side}"):
        network(torch.zeros(1, 3, side, side + 32, dtype=torch.float64))


@pytest.mark.parametrize("width", [0.05, 0.1, 0.33, 1.5])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_multiplier_gives_a_network(variant, width):
    with torch.device("meta"):
        network = build(model_config(variant, width=width, depth=0.6))
    m = network.config.latent_channels
    assert abs(m - model_config(variant).latent_channels * width) <= 32
    parts = network.partition.split(torch.empty(1, m, 8, 8, device="meta"))
    assert len(parts) == len(network.partition.step_scales)
