"""The torch engine: any architecture, on any device, in exact or in floating-point arithmetic."""

from contextlib import AbstractContextManager
from copy import deepcopy
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from hpcm_scale.codec.engines.engine import Code
from hpcm_scale.codec.preview import filled
from hpcm_scale.codec.tiles import LATENT, WHOLE, Tile, inside_mask, piece_side, walk_bytes
from hpcm_scale.config import ModelConfig
from hpcm_scale.entropy.exact.parameters import ExactParameters
from hpcm_scale.entropy.exact.pixels import inverse_gains
from hpcm_scale.entropy.exact.synthesis import ExactSynthesis, grid_latents
from hpcm_scale.entropy.parameters import EntropyParameters, FloatParameters, StepCoding
from hpcm_scale.errors import CheckpointError
from hpcm_scale.models.codec_network import CodecNetwork, noise_shapes
from hpcm_scale.models.density import ScaleDensity
from hpcm_scale.models.torch_internals import has_native_bf16
from hpcm_scale.weights.model_file import LoadedModel

COUNTED_SIDE = 256
"""Side of the picture, in pixels, whose memory is counted."""


class TorchTransforms:
    """g_a and g_s of a network on the device of its parameters."""

    def __init__(self, network: CodecNetwork) -> None:
        self._network = network
        self._device = next(network.parameters()).device

    @property
    def image_multiple(self) -> int:
        """Multiple of pixels that the sides of a canvas must be of."""
        return self._network.image_multiple

    def piece(self, which: int, memory: int) -> tuple[int, int]:
        """Side and reach, in latents, of the pieces of g_a (0) or g_s (1)."""
        reach = reach_of((self._network.g_a, self._network.g_s)[which])
        if reach is None:
            return WHOLE // LATENT, 0
        side = piece_side(reach, transform_bytes(self._network)[which], memory)
        return side // LATENT, reach // LATENT

    def empty(self, rows: int, columns: int) -> Tensor:
        """(1, M, rows, columns) in channels_last memory."""
        shape = (1, self._network.config.latent_channels, rows, columns)
        return torch.empty(shape, device=self._device, memory_format=torch.channels_last)

    def analyse(self, pixels: np.ndarray) -> Tensor:
        """8-bit pixels (H, W, 3) -> y (1, M, H/16, W/16)."""
        x = torch.from_numpy(pixels[None]).to(self._device)
        return self._g_a(dense(x.permute(0, 3, 1, 2) / 255).to(self._g_a_dtype)).float()

    @cached_property
    def _g_a_dtype(self) -> torch.dtype:
        """bfloat16 on CPUs that multiply it: g_a decides nothing but the encoder's choices."""
        in_half = self._device.type == "cpu" and has_native_bf16()
        return torch.bfloat16 if in_half else torch.float32

    @cached_property
    def _g_a(self) -> nn.Module:
        own, dtype = self._network.g_a, self._g_a_dtype
        return own if dtype == torch.float32 else deepcopy(own).to(dtype)

    def synthesise(self, y_hat: Tensor, grey: bool) -> np.ndarray:
        """ŷ (1, M, h, w) -> 8-bit pixels (16h, 16w, 3), or (16h, 16w)."""
        x = self._network.g_s(dense(y_hat))[0]
        x = x.mean(0, keepdim=True) if grey else x
        x = x.clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
        return x[..., 0] if grey else x


class TorchEngine:
    """A model in torch.

    Args:
        model: from `load_model`.
    """

    def __init__(self, model: LoadedModel) -> None:
        self.info = model.info
        self.tables = model.tables
        self.transforms = TorchTransforms(model.network)
        self.step_scales = model.network.partition.step_scales
        self.global_context = model.network.global_context
        self.prices = True
        self._network = model.network
        self._device = next(model.network.parameters()).device
        self._parameters: dict[bool, EntropyParameters] = {}

    @property
    def place(self) -> str:
        """Device and threads, for errors."""
        return f"{self._device}, {torch.get_num_threads()} threads"

    @property
    def whole_bytes(self) -> list[float]:
        """Bytes a pixel of each part that must see all of a picture at once."""
        network = self._network
        needs = [walk_bytes(network.config)] if network.global_context else []
        transforms = (network.g_a, network.g_s)
        if any(reach_of(transform) is None for transform in transforms):
            counted = zip(transforms, transform_bytes(network), strict=True)
            needs += [count for transform, count in counted if reach_of(transform) is None]
        return needs

    def computing(self) -> AbstractContextManager[object]:
        """A context in which torch keeps no gradients."""
        return torch.inference_mode()

    def prepare(self, portable: bool) -> None:
        """Make the entropy parameters of one arithmetic.

        Raises:
            CheckpointError: if the model has no exact arithmetic and `portable` asks for it.
        """
        if portable not in self._parameters:
            try:
                self._parameters[portable] = (
                    ExactParameters(self._network, self.tables, self.info.arithmetic)
                    if portable
                    else FloatParameters(self._network, self.tables)
                )
            except CheckpointError as error:
                raise CheckpointError(f"{self.info.path}: {error}") from None

    def prepare_pixels(self) -> None:
        """Make the exact g_s.

        Raises:
            CheckpointError: if the model's g_s has no exact arithmetic or could leave it.
        """
        try:
            _ = self._exact_g_s, self._inverse_gain(0)
        except CheckpointError as error:
            raise CheckpointError(f"{self.info.path}: {error}") from None

    def exact_pixels(self, y_hat: Tensor, grey: bool, rate: int | None) -> np.ndarray:
        """ŷ (1, M, h, w), not divided by gains -> 8-bit pixels (16h, 16w, 3), or (16h, 16w)."""
        x = grid_latents(dense(y_hat), self._inverse_gain(rate))
        return self._exact_g_s.pixels(x, grey)

    @cached_property
    def _exact_g_s(self) -> ExactSynthesis:
        return ExactSynthesis(self._network.g_s)

    def _inverse_gain(self, rate: int | None) -> np.ndarray | None:
        gains = self._network.gains
        if rate is None or gains is None:
            return None
        return inverse_gains(gains.logs.detach().cpu().numpy(), rate)

    def gain(self, place: float) -> Tensor | None:
        """Factors of the latents before coding, (1, M, 1, 1)."""
        return self._network.gains_at(torch.tensor([place], device=self._device))

    def hyper_symbols(self, y: Tensor, portable: bool) -> np.ndarray:
        """Float symbols (1, N, h/4, w/4) of z of y (1, M, h, w)."""
        self.prepare(portable)
        return _array(self._parameters[portable].hyper_symbols(self._network.h_a(dense(y))))

    def hyper_bits(self, symbols: np.ndarray) -> float:
        """Information content of symbols of z."""
        return float(self._network.z_prior.bits(self._tensor(symbols)).sum())

    def split(self, y: Tensor) -> list[Tensor]:
        """One dense tensor a step, in coding order."""
        return self._network.partition.split(dense(y))

    def masks(self, tile: Tile) -> list[np.ndarray]:
        """Per step, the latents of a tile that are coded."""
        mask = torch.from_numpy(inside_mask(tile, self.info.config.latent_channels))
        return [_array(part > 0) for part in self._network.partition.split(dense(mask))]

    def fill(self, y_hat: Tensor, scales: int) -> Tensor:
        """As `preview.filled`, of the latents of the first `scales` scales."""
        partition = self._network.partition
        parts = zip(partition.split(torch.zeros_like(y_hat)), self.step_scales, strict=True)
        known = partition.join([torch.full_like(part, float(s < scales)) for part, s in parts])
        return self._tensor(filled(_array(y_hat), _array(known) > 0))

    def walk(self, z_symbols: np.ndarray, code: Code, portable: bool) -> Tensor:
        """ŷ (1, M, 4h, 4w) from symbols of z (1, N, h, w)."""
        self.prepare(portable)

        def coded(step: int, coding: StepCoding) -> Tensor:
            return self._tensor(code(step, _TorchCoding(coding, self._network.density)))

        return self._parameters[portable].walk(self._tensor(z_symbols), coded)

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self._device)


class _TorchCoding:
    """A step's `StepCoding`, with arrays in and out."""

    def __init__(self, coding: StepCoding, density: ScaleDensity) -> None:
        self._coding, self._density = coding, density

    @property
    def table(self) -> np.ndarray:
        return _array(self._coding.table)

    def symbols(self, target: Tensor) -> np.ndarray:
        return _array(self._coding.symbols(target))

    def bits(self, symbols: np.ndarray) -> np.ndarray:
        on_device = torch.from_numpy(symbols).to(self._coding.scale.device)
        return _array(self._density.bits(self._coding.residual(on_device), self._coding.scale))


def _array(x: Tensor) -> np.ndarray:
    """A tensor's values in (channel, row, column) order."""
    return x.contiguous().cpu().numpy()


def transform_bytes(network: CodecNetwork) -> tuple[float, float]:
    """Bytes a pixel that g_a and g_s work in: as they state, else as counted."""
    stated: list[float | None] = [
        getattr(part, "working_bytes", None) for part in (network.g_a, network.g_s)
    ]
    counted = _counted_bytes(network.config) if None in stated else [0.0, 0.0]
    g_a, g_s = (b if a is None else a for a, b in zip(stated, counted, strict=True))
    return g_a, g_s


@lru_cache(maxsize=8)
def _counted_bytes(config: ModelConfig) -> list[float]:
    """Bytes a pixel that g_a and g_s work in, counted on the meta device."""
    # Here: most transforms state theirs, and a small picture would wait for this.
    from hpcm_scale.models.storage_tracker import StorageTracker
    from hpcm_scale.models.zoo import build

    with torch.device("meta"):
        network = build(config)
        inputs = (
            torch.empty(1, 3, COUNTED_SIDE, COUNTED_SIDE),
            torch.empty(noise_shapes(config, 1, COUNTED_SIDE, COUNTED_SIDE)[0]),
        )
    found = []
    for transform, x in zip((network.g_a, network.g_s), inputs, strict=True):
        account = StorageTracker([*transform.parameters(), x], 0)
        with account, torch.no_grad():
            transform(x.contiguous(memory_format=torch.channels_last))
        # Half as much again for what the allocator and the convolutions keep.
        found.append(1.5 * sum(account.peak) / COUNTED_SIDE**2)
    return found


def reach_of(transform: nn.Module) -> int | None:
    """Pixels beyond its own that a latent of g_a or g_s sees or influences; None for all."""
    return getattr(transform, "reach", None)


def dense(x: Tensor) -> Tensor:
    """`x` in channels_last memory, the layout the network is fastest in."""
    return x.contiguous(memory_format=torch.channels_last)
