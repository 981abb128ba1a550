"""ELIC's exact entropy path against an int64 one written from EXACT.md and ELIC's page alone."""

from pathlib import Path

import numpy as np
import pytest
import torch

from hpcm_scale.entropy.exact import product as product_module
from hpcm_scale.entropy.exact.arithmetic import ORIGINAL
from hpcm_scale.entropy.exact.parameters import ExactParameters
from hpcm_scale.entropy.parameters import StepCoding
from hpcm_scale.errors import CheckpointError
from hpcm_scale.models.zoo import build, model_config
from hpcm_scale.weights.model_file import load_model, save_model
from tests.entropy.exact_reference import L, symbols_of
from tests.entropy.peer_layers import Layers


class Reference(Layers):
    """The path of one ELIC."""

    def __init__(self, parameters: dict[str, np.ndarray], groups: tuple[int, ...]) -> None:
        super().__init__(parameters)
        self.groups = groups

    def net(self, name: str, x: np.ndarray) -> np.ndarray:
        """Three convolutions with ReLU between them."""
        for layer in (0, 2):
            x = np.maximum(self.conv(f"{name}.{layer}", x), 0)
        return self.conv(f"{name}.4", x)

    def walk(self, z_symbols: np.ndarray, code) -> np.ndarray:
        """ŷ (M, 4h, 4w), over 1024, from z symbols (N, h, w)."""
        x = np.maximum(self.deconv("h_s.0.0", self.z_hat(z_symbols), 2), 0)
        x = np.maximum(self.deconv("h_s.0.2", x, 2), 0)
        params = self.deconv("h_s.0.4", x, 1)
        h, w, _ = params.shape
        odd = (np.arange(h)[:, None] + np.arange(w)) % 2 == 1
        done, step = [], 0
        for k, count in enumerate(self.groups):
            contexts = [params]
            if k:
                before = np.concatenate(done, axis=2)
                contexts = [self.net(f"channel_contexts.{k - 1}", before), params]
            current = np.zeros((h, w, count), np.int64)
            for net, place in (("anchor_nets", odd), ("other_nets", ~odd)):
                both = self.net(f"{net}.{k}", np.concatenate(contexts, axis=2))[place]
                symbols = code(step, *both.T.reshape(2, count, h, w // 2))
                values = symbols.astype(np.int64).reshape(count, -1).T * 1024 + both[:, count:]
                current[place] = values
                if net == "anchor_nets":
                    contexts = [self.conv(f"local_contexts.{k}", current), *contexts]
                step += 1
            done.append(current)
        return np.concatenate(done, axis=2).transpose(2, 0, 1)


@pytest.mark.parametrize("extreme", [False, True])
@pytest.mark.parametrize("in_bytes", [False, True])
def test_every_table_and_mean_is_the_reference_s(
    in_bytes, extreme, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    if in_bytes and not product_module.multiplies_bytes(torch.device("cpu")):
        pytest.skip("this processor does not multiply bytes exactly (no AVX-512 VNNI)")
    monkeypatch.setattr(product_module, "multiplies_bytes", lambda _: in_bytes)
    monkeypatch.setattr(product_module, "LEAST_CHANNELS", 1)
    torch.manual_seed(0)
    network = build(model_config("elic", width=0.05))
    with torch.no_grad():
        network.z_prior.quantiles[:, 0, 1] += torch.linspace(-2, 2, network.config.hyper_channels)
        network.h_s[0][4].weight *= 30000 if extreme else 3
    save_model(tmp_path / "elic.safetensors", network.state_dict(), network.config)
    model = load_model(tmp_path / "elic.safetensors")
    groups = model.info.config.groups
    z_symbols = symbols_of(99, (model.info.config.hyper_channels, 2, 3), extreme)

    expected = []

    def reference_code(step: int, scale: np.ndarray, mean: np.ndarray) -> np.ndarray:
        below = (1024 * model.tables.boundaries.astype(np.float64)) < scale[..., None]
        expected.append((below.sum(-1), mean))
        return symbols_of(step, scale.shape, extreme)

    parameters = {name: p.numpy() for name, p in model.network.named_parameters()}
    reference = Reference(parameters, groups)
    result = reference.walk(z_symbols, reference_code)
    assert (reference.largest == L) == extreme  # activations that must be clamped

    taken = []

    def code(step: int, coding: StepCoding) -> torch.Tensor:
        taken.append((coding.table[0].numpy(), 1024 * coding.mean[0].double().numpy()))
        return torch.from_numpy(symbols_of(step, tuple(coding.table.shape[1:]), extreme))[None]

    with torch.inference_mode():
        path = ExactParameters(model.network, model.tables)
        y_hat = path.walk(torch.from_numpy(z_symbols)[None], code)[0].double().numpy()
    assert len(taken) == len(expected) == 2 * len(groups)
    for (table, mean), (below, mu) in zip(taken, expected, strict=True):
        assert np.array_equal(table, below)
        assert np.array_equal(mean, mu)
    # ŷ leaves the path in single precision.
    assert np.array_equal(y_hat, (result / 1024).astype(np.float32))


def test_weights_that_could_overflow_are_refused(tmp_path: Path):
    network = build(model_config("elic", width=0.05))
    for name in ("h_s.0.2", "channel_contexts.1.2", "local_contexts.3", "other_nets.4.0"):
        state = {key: value.clone().contiguous() for key, value in network.state_dict().items()}
        state[f"{name}.weight"].view(-1)[3] = 9e3
        with pytest.raises(CheckpointError, match=rf"{name}: has a weight of 9000"):
            save_model(tmp_path / "elic.safetensors", state, network.config, arithmetic=ORIGINAL)
