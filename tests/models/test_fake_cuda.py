"""Passes traced on fake tensors of a GPU: every tensor that is made on another device is an error.

Needs a torch with CUDA, but no GPU. In an environment with nothing else to do:
    python -m venv /tmp/cuda && /tmp/cuda/bin/pip install torch    # a build with CUDA
    echo "$PWD/.venv/lib/python3.11/site-packages" > /tmp/cuda/lib/python3.11/site-packages/rest.pth
    PYTHONPATH=. /tmp/cuda/bin/python -m pytest tests/models/test_fake_cuda.py
"""

from collections import defaultdict
from types import MethodType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from hpcm_scale.config import LossConfig
from hpcm_scale.entropy.exact import narrow as narrow_module
from hpcm_scale.entropy.exact import product as product_module
from hpcm_scale.entropy.exact.arithmetic import ORIGINAL, Arithmetic
from hpcm_scale.entropy.exact.parameters import ExactParameters
from hpcm_scale.entropy.exact.synthesis import ExactSynthesis, grid_latents
from hpcm_scale.entropy.parameters import EntropyParameters, FloatParameters, StepCoding
from hpcm_scale.entropy.table_building import build_tables
from hpcm_scale.models.codec_network import CodecNetwork, noise_shapes
from hpcm_scale.models.delayed_gradients import _Settle
from hpcm_scale.models.geometry import HYPER_STRIDE
from hpcm_scale.models.zoo import build, model_config
from hpcm_scale.training import validate
from hpcm_scale.training.loss import RateDistortion, training_loss
from tests.entropy.peer_models import CONFIGS, network

pytestmark = pytest.mark.skipif(torch.version.cuda is None, reason="this torch has no CUDA")

MODE = FakeTensorMode()
"""One for all: index tables outlive a pass."""
VARIANTS = ("base", "compact", "phi", "elic", *CONFIGS)


def put_on_gpu(network: nn.Module, dtype: torch.dtype) -> None:
    """Parameters and buffers of a network on the meta device, as fake ones of a GPU."""
    for module in network.modules():
        for name, tensor in list(module.named_parameters(recurse=False)):
            fake = torch.empty(tensor.shape, device="cuda", dtype=dtype)
            setattr(module, name, nn.Parameter(fake))
        for name, tensor in list(module.named_buffers(recurse=False)):
            setattr(module, name, torch.empty(tensor.shape, device="cuda", dtype=tensor.dtype))


@torch.no_grad()  # as the engine runs them
def gradients(loss: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Parameters and their gradients, node by node: autograd's engine asks for the GPU itself."""
    order: list[Any] = []
    seen = {loss.grad_fn}
    stack: list[Any] = [(loss.grad_fn, iter(loss.grad_fn.next_functions))]
    while stack:
        node, rest = stack[-1]
        after = next((n for n, _ in rest if n is not None and n not in seen), None)
        if after is None:
            order.append(node)
            stack.pop()
        else:
            seen.add(after)
            stack.append((after, iter(after.next_functions)))
    inputs: dict[Any, dict[int, Tensor]] = defaultdict(dict)
    inputs[loss.grad_fn][0] = torch.ones_like(loss)
    found = []
    for node in reversed(order):
        settles = node.name() == _Settle.__name__ + "Backward"  # runs whatever it is given
        grads = inputs.pop(node, {} if settles else None)
        if grads is None:
            continue
        if hasattr(node, "variable"):
            found.append((node.variable, grads[0]))
            continue
        apply = node.apply if isinstance(node, torch._C._FunctionBase) else node
        outs = apply(*(grads.get(i) for i in range(len(node._input_metadata))))
        outs = outs if isinstance(outs, tuple) else (outs,)
        # What is no tensor has no node: what functions of ours take last, and the store.
        outs = outs[1:] if settles else outs
        for (after, i), out in zip(node.next_functions, outs, strict=False):
            if after is None or out is None:
                continue
            wanted = after._input_metadata[i]
            assert out.device == wanted.device, node.name()
            # As the engine does.
            out = out.sum_to_size(wanted.shape).to(wanted.dtype)
            inputs[after][i] = out if i not in inputs[after] else inputs[after][i] + out
    return found


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_pass_makes_no_tensor_elsewhere(variant, dtype):
    """Of training, forward and backward, and of validation."""
    config = model_config(variant, width=0.1)
    with torch.device("meta"):
        network = build(config)
    with MODE:
        put_on_gpu(network, dtype)
        x = torch.empty(2, 3, 256, 256, device="cuda").contiguous(memory_format=torch.channels_last)
        y, z = (torch.empty(s, device="cuda") for s in noise_shapes(config, 2, 256, 256))
        objective = RateDistortion(LossConfig(), config.rates)
        places = torch.empty(2, device="cuda") if config.rates else None
        output = network(x.to(dtype), (y, z), False, places)
        figures = objective.per_image(output, x, places)
        loss = training_loss(figures, output)
        made: list[Tensor] = [output.x_hat, output.bits, figures, loss]
        found = gradients(loss)
        with torch.no_grad():
            output = network(x.to(dtype), None, True, places)
        assert output.bit_map is not None
        made += [output.x_hat, output.bits, output.bit_map]
        made += [gradient for _, gradient in found]
    assert {tensor.device.type for tensor in made} == {"cuda"}
    assert all(p.shape == g.shape and p.dtype == g.dtype for p, g in found)
    assert {id(p) for p, _ in found} == {id(p) for p in network.parameters()}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", ["base", "compact", "elic"])
def test_the_export_check_makes_no_tensor_elsewhere(variant, dtype, monkeypatch):
    """It validates the exported model on the GPU, on pictures of any size from the CPU."""
    config = model_config(variant, width=0.1)
    with torch.device("meta"):
        network = build(config)
    with MODE, Zeros():
        put_on_gpu(network, dtype)
        item = SimpleNamespace(image=torch.empty(3, 200, 136), counted=True)
        monkeypatch.setattr(validate, "read_images", lambda *_: [item])
        figures = validate.validate(network, "", RateDistortion(LossConfig(), config.rates))
    assert {"loss", "bpp", "psnr"} <= figures.keys()


class Zeros(TorchDispatchMode):
    """What Python reads of a fake tensor is 0."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name() in ("aten::item", "aten::_local_scalar_dense", "aten::is_nonzero"):
            return 0.0 if args[0].dtype.is_floating_point else 0
        return func(*args, **(kwargs or {}))


def moved(value: Any, seen: dict[int, tuple[Any, Any]]) -> Any:
    """`value` with every tensor in it, however deep, replaced by a fake one of a GPU."""
    if id(value) in seen:
        return seen[id(value)][1]
    if isinstance(value, Tensor):
        fake: Any = torch.empty_strided(
            value.shape, value.stride(), dtype=value.dtype, device="cuda"
        )
        made = nn.Parameter(fake, False) if isinstance(value, nn.Parameter) else fake
    elif isinstance(value, list | tuple):
        parts = [moved(part, seen) for part in value]
        made = type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    elif isinstance(value, dict):
        for key in value:
            value[key] = moved(value[key], seen)
        made = value
    else:
        seen[id(value)] = (value, value)
        made = value
        if isinstance(value, MethodType):
            moved(value.__self__, seen)
        elif type(value).__module__.startswith(("hpcm_scale", "torch.nn")):
            moved(getattr(value, "__dict__", None), seen)
    seen[id(value)] = (value, made)  # whose number is no other's while it is there
    return made


def walked(path: EntropyParameters, network: CodecNetwork) -> Tensor:
    """ŷ of a fake walk; tables and means must be on the GPU."""

    def code(step: int, coding: StepCoding) -> Tensor:
        assert {coding.table.device.type, coding.mean.device.type} == {"cuda"}
        return torch.empty(coding.table.shape, dtype=torch.int32, device="cuda")

    side = max(2, network.image_multiple // HYPER_STRIDE)
    z = torch.empty(1, network.config.hyper_channels, side, 2 * side, device="cuda")
    return path.walk(path.hyper_symbols(z).int(), code)


@pytest.mark.slow
@pytest.mark.parametrize("in_bytes", [False, True])
@pytest.mark.parametrize("arithmetic", [ORIGINAL, Arithmetic(2)], ids=["1", "2"])
@pytest.mark.parametrize("variant", ["base", "elic", *CONFIGS])
def test_coding_makes_no_tensor_elsewhere(variant, arithmetic, in_bytes, monkeypatch):
    made = network(variant) if variant in CONFIGS else build(model_config(variant, width=0.05))
    made.requires_grad_(False)
    tables = build_tables(made)
    paths = [ExactParameters(made, tables, arithmetic), FloatParameters(made, tables)]
    synthesis = ExactSynthesis(made.g_s) if variant == "base" else None
    for module in (product_module, narrow_module):
        monkeypatch.setattr(module, "multiplies_bytes", lambda _: in_bytes)
    monkeypatch.setattr(Tensor, "numpy", lambda self: self)
    with torch.no_grad(), MODE, Zeros():
        paths, synthesis = moved((paths, synthesis), {})
        for path in paths:
            y_hat = walked(path, made)
            assert y_hat.device.type == "cuda"
        if synthesis is not None:
            for grey in (False, True):
                pixels: Any = synthesis.pixels(grid_latents(y_hat, None), grey)
                assert pixels.dtype == torch.uint8
