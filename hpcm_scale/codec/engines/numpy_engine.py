"""The NumPy engine: HPCM networks on CPUs, in exact arithmetic, without torch."""

from contextlib import AbstractContextManager

import numpy as np

from hpcm_scale.codec.engines.engine import Code
from hpcm_scale.codec.preview import filled
from hpcm_scale.codec.tiles import LATENT, Tile, inside_mask, piece_side
from hpcm_scale.entropy.exact.grid import GRID
from hpcm_scale.errors import CheckpointError
from hpcm_scale.numpy_engine.exact_synthesis import grid_latents
from hpcm_scale.numpy_engine.model import NumpyModel
from hpcm_scale.numpy_engine.network import Network
from hpcm_scale.numpy_engine.threads import single_threaded_blas


class NumpyTransforms:
    """g_a and g_s of a network."""

    def __init__(self, network: Network) -> None:
        self._network = network

    @property
    def image_multiple(self) -> int:
        """Multiple of pixels that the sides of a canvas must be of."""
        return self._network.image_multiple

    def piece(self, which: int, memory: int) -> tuple[int, int]:
        """Side and reach, in latents, of the pieces of g_a (0) or g_s (1)."""
        reach = self._network.reaches[which]
        side = piece_side(reach, self._network.working_bytes, memory)
        return side // LATENT, reach // LATENT

    def empty(self, rows: int, columns: int) -> np.ndarray:
        """(1, M, rows, columns)."""
        return _latents(np.empty((rows, columns, self._network.config.latent_channels), np.float32))

    def analyse(self, pixels: np.ndarray) -> np.ndarray:
        """8-bit pixels (H, W, 3) -> y (1, M, H/16, W/16)."""
        return _latents(self._network.g_a(pixels / np.float32(255)))

    def synthesise(self, y_hat: np.ndarray, grey: bool) -> np.ndarray:
        """ŷ (1, M, h, w) -> 8-bit pixels (16h, 16w, 3), or (16h, 16w)."""
        x = self._network.g_s(_image(y_hat))
        x = x.mean(2) if grey else x
        np.clip(x, 0, 1, out=x)
        x *= 255
        return np.rint(x, out=x).astype(np.uint8)


class NumpyEngine:
    """A model in NumPy.

    Args:
        model: from `load_numpy`.
    """

    def __init__(self, model: NumpyModel) -> None:
        self.info = model.info
        self.tables = model.tables
        self.transforms = NumpyTransforms(model.network)
        self.step_scales = model.network.grids.step_scales
        self.global_context = False
        self.prices = False
        self._network = model.network
        # Scales are integers over GRID: a boundary is passed by what lies above its floor.
        boundaries = np.floor(model.tables.boundaries.astype(np.float64) * GRID)
        self._boundaries = boundaries.astype(np.float32)

    @property
    def place(self) -> str:
        """Name of the library, for errors."""
        return "NumPy"

    @property
    def whole_bytes(self) -> list[float]:
        """None: every part works on pieces."""
        return []

    def computing(self) -> AbstractContextManager[object]:
        """A context in which threads are the engine's own."""
        return single_threaded_blas()

    def prepare(self, portable: bool) -> None:
        """Raises CheckpointError for floating-point arithmetic, which is torch's."""
        if not portable:
            raise CheckpointError(
                f"{self.info.path}: floating-point coding (--fast) needs torch: "
                "pip install 'hpcm-scale[torch]', then --engine torch"
            )

    def prepare_pixels(self) -> None:
        """Raises CheckpointError if the model's g_s or gains could leave exact arithmetic."""
        try:
            _ = self._network.exact_g_s, self._network.inverse_gain(0)
        except CheckpointError as error:
            raise CheckpointError(f"{self.info.path}: {error}") from None

    def exact_pixels(self, y_hat: np.ndarray, grey: bool, rate: int | None) -> np.ndarray:
        """ŷ (1, M, h, w), not divided by gains -> 8-bit pixels (16h, 16w, 3), or (16h, 16w)."""
        x = grid_latents(_image(y_hat), self._network.inverse_gain(rate))
        return self._network.exact_g_s.pixels(x, grey)

    def gain(self, place: float) -> np.ndarray:
        """Factors of the latents before coding, (1, M, 1, 1)."""
        return self._network.gain(place)[None, :, None, None]

    def hyper_symbols(self, y: np.ndarray, portable: bool) -> np.ndarray:
        """Float symbols (1, N, h/4, w/4) of z of y (1, M, h, w)."""
        return _latents(self._network.hyper_symbols(self._network.h_a(_image(y))))

    def hyper_bits(self, symbols: np.ndarray) -> float:
        """Not known: densities are torch's."""
        raise NotImplementedError

    def split(self, y: np.ndarray) -> list[np.ndarray]:
        """One dense array (1, C_k, h_k, w_k) a step, in coding order."""
        return [_latents(part) for part in self._network.grids.split(_image(y))]

    def masks(self, tile: Tile) -> list[np.ndarray]:
        """Per step, the latents of a tile that are coded."""
        mask = inside_mask(tile, self.info.config.latent_channels)
        return [part > 0 for part in self.split(mask)]

    def fill(self, y_hat: np.ndarray, scales: int) -> np.ndarray:
        """As `preview.filled`, of the latents of the first `scales` scales."""
        grids = self._network.grids
        parts = zip(grids.split(_image(np.zeros_like(y_hat))), self.step_scales, strict=True)
        known = grids.join([np.full_like(part, s < scales) for part, s in parts])
        return filled(y_hat, _latents(known) > 0)

    def walk(self, z_symbols: np.ndarray, code: Code, portable: bool) -> np.ndarray:
        """ŷ (1, M, 4h, 4w) from symbols of z (1, N, h, w)."""

        def coded(step: int, scale: np.ndarray, mean: np.ndarray) -> np.ndarray:
            return _image(code(step, _NumpyCoding(scale, mean, self._boundaries)))

        return _latents(self._network.walk(_image(z_symbols), coded))


class _NumpyCoding:
    """How a step is coded: its scales and means (h, w, C), grid integers."""

    def __init__(self, scale: np.ndarray, mean: np.ndarray, boundaries: np.ndarray) -> None:
        self._scale, self._mean, self._boundaries = scale, mean, boundaries

    @property
    def table(self) -> np.ndarray:
        return np.searchsorted(self._boundaries, _latents(self._scale))

    def symbols(self, target: np.ndarray) -> np.ndarray:
        return np.rint(target - _latents(self._mean) * np.float32(1 / GRID))

    def bits(self, symbols: np.ndarray) -> np.ndarray:
        raise NotImplementedError


def _latents(x: np.ndarray) -> np.ndarray:
    """(h, w, C) as (1, C, h, w), a view."""
    return x.transpose(2, 0, 1)[None]


def _image(x: np.ndarray) -> np.ndarray:
    """(1, C, h, w) as (h, w, C), contiguous."""
    return np.ascontiguousarray(x[0].transpose(1, 2, 0))
