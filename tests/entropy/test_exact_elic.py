"""ELIC's exact entropy path against an int64 one written from EXACT.md and ELIC's page alone."""

from pathlib import Path

import numpy as np
import pytest
import torch

from hpcm_scale.entropy.exact import product as product_module
from hpcm_scale.entropy.exact.parameters import ExactParameters
from hpcm_scale.entropy.parameters import StepCoding
from hpcm_scale.errors import CheckpointError
from hpcm_scale.models.zoo import build, model_config
from hpcm_scale.weights.model_file import load_model, save_model
from tests.entropy.exact_reference import L, Linear, clamp, to_integers


class Reference:
    """The path of one ELIC; maps are (H, W, C) int64."""

    def __init__(self, parameters: dict[str, np.ndarray], groups: tuple[int, ...]) -> None:
        self.p, self.groups = parameters, groups
        self.largest = 0
        """Magnitude of the outputs so far."""

    def conv(self, name: str, x: np.ndarray) -> np.ndarray:
        weight, bias = self.p[f"{name}.weight"], self.p[f"{name}.bias"]
        k = weight.shape[-1]
        h, w, _ = x.shape
        around = np.pad(clamp(x), ((k // 2, k // 2), (k // 2, k // 2), (0, 0)))
        taps = [around[i : i + h, j : j + w] for i in range(k) for j in range(k)]
        patches = np.stack(taps, axis=-1)  # (H, W, C, k²)
        y = Linear(weight.reshape(len(weight), -1), bias).settled(patches.reshape(h, w, -1))
        self.largest = max(self.largest, int(np.abs(y).max()))
        return y

    def deconv(self, name: str, x: np.ndarray, stride: int) -> np.ndarray:
        """Every output by its definition: input i adds row r of the kernel at s·i − p + r."""
        weight, bias = self.p[f"{name}.weight"], self.p[f"{name}.bias"]  # (I, O, k, k)
        k = weight.shape[-1]
        h, w, _ = x.shape
        x, p = clamp(x), k // 2
        out = np.zeros((stride * h, stride * w, weight.shape[1]), np.int64)
        for a in range(stride):
            for b in range(stride):
                meets = [
                    (r, c)
                    for r in range(k)
                    for c in range(k)
                    if (a + p - r) % stride == 0 and (b + p - c) % stride == 0
                ]
                layer = Linear(np.concatenate([weight[:, :, r, c].T for r, c in meets], 1), bias)
                for i in range(h):
                    for j in range(w):
                        seen = []
                        for r, c in meets:
                            row = i + (a + p - r) // stride
                            column = j + (b + p - c) // stride
                            inside = 0 <= row < h and 0 <= column < w
                            seen.append(x[row, column] if inside else np.zeros_like(x[0, 0]))
                        out[stride * i + a, stride * j + b] = layer.settled(np.concatenate(seen))
        return out

    def net(self, name: str, x: np.ndarray) -> np.ndarray:
        """Three convolutions with ReLU between them."""
        for layer in (0, 2):
            x = np.maximum(self.conv(f"{name}.{layer}", x), 0)
        return self.conv(f"{name}.4", x)

    def walk(self, z_symbols: np.ndarray, code) -> np.ndarray:
        """ŷ (M, 4h, 4w), over 1024, from z symbols (N, h, w)."""
        median = clamp(to_integers(self.p["z_prior.quantiles"][:, 0, 1], 10))
        x = clamp(1024 * z_symbols.astype(np.int64) + median[:, None, None]).transpose(1, 2, 0)
        x = np.maximum(self.deconv("h_s.0.0", x, 2), 0)
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


def symbols_of(step: int, shape: tuple[int, ...], extreme: bool) -> np.ndarray:
    rng = np.random.default_rng(step)
    symbols = np.rint(rng.laplace(0, 2, shape)).astype(np.int32)
    if extreme:
        places = rng.random(shape) < 0.1
        symbols[places] = rng.integers(-(2**30), 2**30, places.sum())
    return symbols


@pytest.mark.parametrize("extreme", [False, True])
@pytest.mark.parametrize("in_bytes", [False, True])
def test_every_table_and_mean_is_the_reference_s(
    in_bytes, extreme, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    if in_bytes and not product_module.multiplies_bytes(torch.device("cpu")):
        pytest.skip("this processor does not multiply bytes exactly (no AVX-512 VNNI)")
    monkeypatch.setattr(product_module, "multiplies_bytes", lambda _: in_bytes)
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
            save_model(tmp_path / "elic.safetensors", state, network.config)
