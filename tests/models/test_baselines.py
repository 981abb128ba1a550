"""The papers' two baselines: their counts, what a step may see, and that they train and code."""

import numpy as np
import pytest
import torch

from hpcm_scale.codec.codec import Codec
from hpcm_scale.errors import ConfigError, DataError
from hpcm_scale.models.codec_network import CodecNetwork
from hpcm_scale.models.complexity import complexity_table, count_parameters
from hpcm_scale.models.zoo import build, model_config
from hpcm_scale.weights.model_file import save_model

BASELINES = ("charm", "dcvc-dc-intra")
STEPS = {"charm": 10, "dcvc-dc-intra": 4}


def small(baseline: str) -> CodecNetwork:
    """A narrow network as training would start it, in float64."""
    torch.manual_seed(0)
    return build(model_config(baseline, width=0.05)).double()


def latents(network: CodecNetwork, batch: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """(params, y) as random as they are large enough not to round to nothing."""
    m = network.config.latent_channels
    params = torch.randn(batch, 2 * m, 8, 12, dtype=torch.float64)
    return params, 3 * torch.randn(batch, m, 8, 12, dtype=torch.float64)


def walked(network: CodecNetwork, params: torch.Tensor, value_of):
    """What a callback sees at every step, what it returned, and ŷ."""
    seen, coded = [], []

    def code(step, scale, mean):
        assert step == len(seen)
        seen.append(torch.cat([scale, mean], dim=1))
        coded.append(value_of(step, mean))
        return coded[-1]

    with torch.no_grad():
        return seen, coded, network.code_steps(params, code)


def encoded(network: CodecNetwork, params: torch.Tensor, y: torch.Tensor):
    """`walked` by an encoder of `y`."""
    targets = network.partition.split(y)
    return walked(network, params, lambda k, mean: (targets[k] - mean).round() + mean)


# arXiv 2507.19125 prints two decimals. kMACs/pixel: CHARM* is 0.03 below, DCVC-DC intra* 0.01.
@pytest.mark.parametrize(
    ("baseline", "millions", "kmacs", "within"),
    [("charm", 58.53, 495.75, 0.03), ("dcvc-dc-intra", 45.51, 542.14, 0.015)],
)
def test_counts_are_the_papers(baseline, millions, kmacs, within):
    config = model_config(baseline)
    *parts, total = complexity_table(config)
    assert total.part == "sum"
    assert total.parameters / 1e6 == pytest.approx(millions, abs=0.005)
    assert total.kmacs_per_pixel == pytest.approx(kmacs, abs=within)
    assert sum(part.parameters for part in parts) == total.parameters
    assert sum(part.kmacs_per_pixel for part in parts) == pytest.approx(total.kmacs_per_pixel)
    with torch.device("meta"):
        counts = count_parameters(build(config))
    assert counts["total"] == total.parameters == sum(counts.values()) / 2
    base = {part.part: part for part in complexity_table(model_config("base"))}
    assert [p for p in parts if p.part in ("g_a", "g_s", "h_a")] == [
        base[name] for name in ("g_a", "g_s", "h_a")
    ]


@pytest.mark.parametrize("baseline", BASELINES)
def test_splitting_and_joining_are_inverse(baseline):
    network = small(baseline)
    _, y = latents(network, batch=3)
    parts = network.partition.split(y)
    assert len(parts) == STEPS[baseline] == len(network.partition.step_scales)
    assert torch.equal(network.partition.join(parts), y)


@pytest.mark.parametrize("baseline", BASELINES)
def test_a_step_reads_no_latent_it_has_yet_to_code(baseline):
    network = small(baseline)
    params, y = latents(network)
    before, _, _ = encoded(network, params, y)
    for k in range(STEPS[baseline]):
        changed = network.partition.split(y)
        for part in changed[k:]:
            part += 5 * torch.randn_like(part)
        after, _, _ = encoded(network, params, network.partition.join(changed))
        assert all(torch.equal(a, b) for a, b in zip(before[: k + 1], after[: k + 1], strict=True))
        if k < STEPS[baseline] - 1:
            read = not torch.equal(before[k + 1], after[k + 1])
            # Past its fifth slice a charm's later slices read the first five alone.
            assert read == (baseline != "charm" or k < 5)


@pytest.mark.parametrize("baseline", BASELINES)
def test_encoder_and_decoder_see_the_same_parameters(baseline):
    network = small(baseline)
    params, y = latents(network, batch=3)
    encoder, coded, y_hat = encoded(network, params, y)
    decoder, _, decoded = walked(network, params, lambda k, mean: coded[k])
    assert torch.equal(decoded, y_hat)
    assert all(torch.equal(a, b) for a, b in zip(encoder, decoder, strict=True))


def test_a_charms_slices_end_within_half_of_what_was_coded():
    network = small("charm")
    with torch.no_grad():
        for net in network.residual_nets:
            net[-1].weight.mul_(1e4)
    _, coded, y_hat = encoded(network, *latents(network))
    added = y_hat - torch.cat(coded, dim=1)
    assert 0.49 < added.abs().max() <= 0.5 + 1e-9


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("baseline", BASELINES)
def test_gradients_reach_every_parameter(baseline, checkpointing):
    network = small(baseline)
    network.checkpoint_activations(checkpointing)
    with torch.no_grad():
        network.h_a[-1][-1].weight.mul_(50)  # a fresh z rounds to 0, which would hide h_s
    x = torch.rand(2, 3, 128, 64, dtype=torch.float64)
    m, n = network.config.latent_channels, network.config.hyper_channels
    noise = (torch.rand(2, m, 8, 4).double() - 0.5, torch.rand(2, n, 2, 1).double() - 0.5)
    output = network(x, noise)
    assert output.x_hat.shape == x.shape
    assert output.bits.shape == (2, network.scales + 1) == (2, 2)
    (output.bits.sum() + output.x_hat.square().sum()).backward()
    still = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


@pytest.mark.parametrize("baseline", BASELINES)
def test_sides_must_be_multiples_of_the_stride(baseline):
    with pytest.raises(DataError, match="not multiples of 64"):
        small(baseline)(torch.zeros(1, 3, 64, 96, dtype=torch.float64))


@pytest.mark.parametrize(
    ("baseline", "overrides", "message"),
    [
        ("charm", {"latent_channels": 48}, "latent_channels: 48 is not a multiple of 40"),
        ("charm", {"fusion": "psi"}, "fusion: only of hpcm, architecture is charm"),
        ("dcvc-dc-intra", {"schedule": "2-3-3"}, "schedule: only of hpcm"),
    ],
)
def test_what_a_baseline_does_not_have_is_refused_by_name(baseline, overrides, message):
    with pytest.raises(ConfigError, match=message):
        model_config(baseline, overrides=overrides)


@pytest.mark.parametrize("width", [0.01, 0.1, 0.33, 1.7])
@pytest.mark.parametrize("baseline", BASELINES)
def test_the_width_multiplier_keeps_the_slices_proportional(baseline, width):
    with torch.device("meta"):
        network = build(model_config(baseline, width=width))
    m = network.config.latent_channels
    assert abs(m - 320 * width) <= (20 if 320 * width > 40 else 40)
    parts = network.partition.split(torch.empty(1, m, 8, 8, device="meta"))
    assert {part.shape[1] for part in parts} == {m // STEPS[baseline]}
    if baseline == "charm":
        assert [net[0].out_channels * 32 for net in network.scale_nets] == [
            parts[0].shape[1] * 224
        ] * 10


@pytest.mark.parametrize("baseline", BASELINES)
def test_the_codec_carries_a_baseline(baseline, tmp_path):
    network = small(baseline).float()
    m = network.config.latent_channels
    with torch.no_grad():
        # As initialised, latents round to zero and scales stay below the smallest.
        network.g_a[-1][0].weight *= 20
        network.h_a[-1][-1].weight *= 5
        outputs = network.scale_nets if baseline == "charm" else [network.shared]
        for net in outputs:
            net[-1].bias[: m if baseline != "charm" else None] += 1.5
    path = tmp_path / "baseline.safetensors"
    save_model(path, network.state_dict(), network.config, lmbda=0.013, record={"steps": 0})
    codec = Codec.load(path, portable=False)
    image = np.random.default_rng(0).integers(0, 256, (128, 192, 3), dtype=np.uint8)
    data = codec.encode(image)
    assert len(data) > 500  # symbols other than zero were coded
    x = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        expected = (network(x).x_hat[0].clamp(0, 1) * 255).round().permute(1, 2, 0).numpy()
    assert np.abs(np.asarray(codec.decode(data)) - expected).max() <= 1  # of 8 bits
    # A picture that ends inside a tile: the last latents of a step are not coded.
    assert np.asarray(codec.decode(codec.encode(image[:70, :130]))).shape == (70, 130, 3)
