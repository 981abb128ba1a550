"""The interface of an engine. Symbols and tables pass as NumPy arrays, latents as they are.

Latents are (1, M, h, w): a tensor of torch or an array, which the codec slices and assigns to.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np

from hpcm_scale.codec.tiles import Tile
from hpcm_scale.entropy.tables import Tables
from hpcm_scale.weights.model_info import ModelInfo

Latents = Any
"""(1, M, h, w), of the engine's kind."""
Target = Any
"""A step's dense (1, C_k, h_k, w_k) latents, of the engine's kind."""


class Coding(Protocol):
    """How the latents of one step are coded."""

    @property
    def table(self) -> np.ndarray:
        """(1, C_k, h_k, w_k) integers: the table of each."""
        ...

    def symbols(self, target: Target) -> np.ndarray:
        """Float symbols (1, C_k, h_k, w_k) of the latents that an encoder has, not yet bounded."""
        ...

    def bits(self, symbols: np.ndarray) -> np.ndarray:
        """Information content of symbols under the model's density; only if the engine prices."""
        ...


Code = Callable[[int, Coding], np.ndarray]
"""(step, how its latents are coded) -> its symbols (1, C_k, h_k, w_k), int32, contiguous."""


class Transforms(Protocol):
    """g_a and g_s of a network, on pieces of a picture."""

    @property
    def image_multiple(self) -> int:
        """Multiple of pixels that the sides of a canvas must be of."""
        ...

    def piece(self, which: int, memory: int) -> tuple[int, int]:
        """Side and reach, in latents, of the pieces of g_a (0) or g_s (1) within some bytes."""
        ...

    def empty(self, rows: int, columns: int) -> Latents:
        """Uninitialised latents (1, M, rows, columns)."""
        ...

    def analyse(self, pixels: np.ndarray) -> Latents:
        """g_a of 8-bit pixels (H, W, 3)."""
        ...

    def synthesise(self, y_hat: Latents, grey: bool) -> np.ndarray:
        """g_s as 8-bit pixels (H, W, 3), or (H, W) if `grey`: the mean of the channels."""
        ...


class Engine(Protocol):
    """A model's networks, ready to compute."""

    info: ModelInfo
    tables: Tables
    step_scales: tuple[int, ...]
    """The scale that each coding step belongs to, in coding order, counted from 0."""
    global_context: bool
    """Whether coding steps see the whole image, so that it is never cut into coding tiles."""
    prices: bool
    """Whether it has the model's densities, and not only the tables made of them."""

    @property
    def transforms(self) -> Transforms:
        """The analysis and synthesis transforms, g_a and g_s."""
        ...

    @property
    def place(self) -> str:
        """Device and threads, for errors."""
        ...

    @property
    def whole_bytes(self) -> list[float]:
        """Bytes a pixel of each part that must see all of a picture at once."""
        ...

    def computing(self) -> AbstractContextManager[object]:
        """Surrounds everything that is computed for a picture."""
        ...

    def prepare(self, portable: bool) -> None:
        """Make what one arithmetic of the entropy path needs, if it is not there yet.

        Raises:
            CheckpointError: if the engine or the model has not this arithmetic.
        """
        ...

    def prepare_pixels(self) -> None:
        """Make what exact pixels need, if it is not there yet.

        Raises:
            CheckpointError: if the model has no exact arithmetic for them.
        """
        ...

    def exact_pixels(self, y_hat: Latents, grey: bool, rate: int | None) -> np.ndarray:
        """As `Transforms.synthesise`, in exact arithmetic, of ŷ as `walk` gives it.

        Args:
            rate: of the file, by whose gains ŷ is divided first; None of a model of one rate.
        """
        ...

    def gain(self, place: float) -> Latents:
        """Factors of the latents before coding, (1, M, 1, 1).

        Args:
            place: in [0, n − 1] among the n rates of a model of many.
        """
        ...

    def hyper_symbols(self, y: Latents, portable: bool) -> np.ndarray:
        """Float symbols (1, N, h/4, w/4) of z of a tile, not yet bounded."""
        ...

    def hyper_bits(self, symbols: np.ndarray) -> float:
        """Information content of symbols of z; only if the engine prices."""
        ...

    def split(self, y: Latents) -> list[Target]:
        """One dense tensor a step, in coding order."""
        ...

    def masks(self, tile: Tile) -> list[np.ndarray]:
        """Per step, (1, C_k, h_k, w_k) bool: the latents of a tile that are coded."""
        ...

    def fill(self, y_hat: Latents, scales: int) -> Latents:
        """ŷ (1, M, h, w) of a tile, but for latents of later scales than the first `scales`: means
        of those around them."""
        ...

    def walk(self, z_symbols: np.ndarray, code: Code, portable: bool) -> Latents:
        """ŷ from symbols of z (1, N, h/4, w/4) int32, calling `code` once a step."""
        ...
