"""Weight gradients that wait for the end of a pass against those of every use, added up."""

import gc
import weakref
from contextlib import nullcontext

import pytest
import torch

from hpcm_scale.models import delayed_gradients
from hpcm_scale.models.codec_network import noise_shapes
from hpcm_scale.models.delayed_gradients import DelayedGradients, WeightGradientStore
from hpcm_scale.models.zoo import build, model_config

CONFIG = model_config("base", width=0.025)


@pytest.fixture
def network(monkeypatch):
    monkeypatch.setattr(delayed_gradients, "CPU_HELD_BYTES", delayed_gradients.HELD_BYTES)
    torch.manual_seed(0)
    return build(CONFIG).double()  # in double precision a CPU computes as an accelerator does


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(0)
    shapes = ((1, 3, 256, 256), *noise_shapes(CONFIG, 1, 256, 256))
    return [torch.rand(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def loss(network, batch):
    x, *noise = batch
    output = network(x, tuple(part - 0.5 for part in noise))
    return output.bits.sum() / 1000 + (output.x_hat - x).square().mean()


def gradients(network, *batches):
    """By name, of one backward pass a batch."""
    network.zero_grad()
    for batch in batches:
        loss(network, batch).backward()
    return {name: parameter.grad for name, parameter in network.named_parameters()}


def check_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        if name.endswith("key.bias"):  # softmax is blind to it: rounding errors alone
            assert found[name].abs().max() < 1e-12
        else:
            assert torch.allclose(found[name], gradient, rtol=1e-9, atol=1e-15), name


@pytest.fixture
def expected(network, batch, monkeypatch):
    """Gradients as autograd adds them up."""
    with monkeypatch.context() as patch:
        patch.setattr(DelayedGradients, "one_pass", lambda *_: nullcontext())
        return gradients(network, batch)


@pytest.mark.parametrize("held", [0, 100_000, delayed_gradients.HELD_BYTES])
@pytest.mark.parametrize("checkpointing", [False, True, 2])
def test_the_gradients_are_those_of_all_uses(
    network, batch, expected, monkeypatch, held, checkpointing
):
    monkeypatch.setattr(delayed_gradients, "CPU_HELD_BYTES", held)
    network.checkpoint_activations(checkpointing)
    check_equal(gradients(network, batch), expected)


def test_a_parameter_gets_its_gradient_once_a_pass(network, batch, expected):
    counts = dict.fromkeys(expected, 0)
    for name, parameter in network.named_parameters():

        def count(_, name=name):
            counts[name] += 1

        parameter.register_post_accumulate_grad_hook(count)
    found = gradients(network, batch, batch)  # two micro-batches of one step
    assert set(counts.values()) == {2}
    check_equal(found, {name: 2 * gradient for name, gradient in expected.items()})


def test_two_passes_may_share_a_backward_pass(network, batch, expected):
    network.zero_grad()
    (loss(network, batch) + 2 * loss(network, batch)).backward()
    found = {name: parameter.grad for name, parameter in network.named_parameters()}
    check_equal(found, {name: 3 * gradient for name, gradient in expected.items()})


def test_frozen_parameters_get_none_and_change_no_other(network, batch, expected):
    frozen = ("shared_s3.before", "steps.0.scale", "fusions.1.query.bias")
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))
    found = gradients(network, batch)
    assert all((found[name] is None) == name.startswith(frozen) for name in found)
    trained = {name: gradient for name, gradient in expected.items() if found[name] is not None}
    check_equal({name: found[name] for name in trained}, trained)


def test_a_failed_backward_pass_leaves_nothing(network, batch, expected, monkeypatch):
    def fail(*_):
        raise RuntimeError("in the middle")

    # The net of the first scales comes after all uses of the last scale's.
    handle = network.shared_s12.register_full_backward_pre_hook(fail)
    stores = []
    made = WeightGradientStore.__init__

    def note(store, layers):
        stores.append(weakref.ref(store))
        made(store, layers)

    monkeypatch.setattr(WeightGradientStore, "__init__", note)
    with handle, pytest.raises(RuntimeError, match="in the middle"):
        gradients(network, batch)
    assert network.shared_s3.before[0].pair.expand_weight.grad is None  # nor had it been given
    check_equal(gradients(network, batch), expected)
    gc.collect()
    assert [store() for store in stores] == [None, None]  # nor does memory go from pass to pass


def test_no_store_outlives_its_forward_pass(network, batch):
    delayed = network.shared_s3.before[0].depthwise.delayed
    with torch.no_grad():
        loss(network, batch)
    assert delayed.store is None

    def fail(*_):
        assert delayed.store is not None
        raise RuntimeError("in the middle")

    handle = network.fusions[2].register_forward_pre_hook(fail)
    with handle, pytest.raises(RuntimeError, match="in the middle"):
        loss(network, batch)
    assert delayed.store is None
