"""One coding tile: its latents to an entropy-coded payload, and back."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from hpcm_scale.codec.coding_result import OnProgress, Timing, unheard
from hpcm_scale.codec.engines.engine import Coding, Engine, Latents
from hpcm_scale.codec.tiles import HYPER, Tile
from hpcm_scale.entropy.coder import (
    LARGEST_SYMBOL,
    AnsDecoder,
    AnsEncoder,
    SymbolDigest,
    SymbolModels,
)
from hpcm_scale.errors import BitstreamError, DataError

OnGroup = Callable[[np.ndarray, np.ndarray], None]
"""Callback that takes the tables and the symbols of a group, both (S,)."""


class EncodedTile(NamedTuple):
    """A tile's payloads and what the model expected them to take."""

    payloads: list[bytes]
    """One, or one for each scale."""
    estimated_bits: float
    """Information content of the symbols under the model's densities; 0 unless asked for."""
    y_hat: Latents
    """(1, M, h, w): what a decoder will have."""


class TileCoder:
    """The coding steps of a model, walked with an entropy coder for one tile at a time.

    Args:
        engine: that computes the model's networks.
        on_group: told the tables and the symbols of each group that is decoded, in order.
    """

    def __init__(self, engine: Engine, on_group: OnGroup | None = None) -> None:
        self._engine = engine
        self._on_group = on_group
        self._info = engine.info
        self._tables = engine.tables
        self._y_models = SymbolModels(engine.tables.y)
        self._z_models = SymbolModels(engine.tables.z)

    def hyper_symbols(self, y: Latents, tile: Tile, portable: bool) -> np.ndarray:
        """Symbols of z (1, N, h/4, w/4) int32 of a tile of y (1, M, h, w); 0 in the padding.

        Raises:
            DataError: if the model gives values that are not numbers, or absurdly large.
        """
        symbols = self._integers(self._engine.hyper_symbols(y, portable))
        rows, columns = tile.hyper_inside
        symbols[..., rows:, :] = 0
        symbols[..., columns:] = 0
        return symbols

    def encode(
        self,
        tile: Tile,
        y: Latents,
        digest: SymbolDigest,
        timing: Timing,
        portable: bool,
        estimate: bool = False,
        on_progress: OnProgress = unheard,
        progressive: bool = False,
    ) -> EncodedTile:
        """Code one tile.

        Args:
            y: (1, M, h, w), its latents.
            digest: updated with every symbol.
            timing: told what the entropy coding took.
            estimate: also add up the information content of the symbols.
            on_progress: told how far the tile is.
            progressive: a payload for each scale; z goes with the smallest.

        Raises:
            DataError: as `hyper_symbols`.
        """
        z_symbols = self.hyper_symbols(y, tile, portable)
        part_of_step = self._parts_of_steps(progressive)
        groups: list[list[tuple[np.ndarray, np.ndarray, SymbolModels]]]
        groups = [[] for _ in range(max(part_of_step) + 1)]
        estimated = 0.0
        rows, columns = tile.hyper_inside
        inside = z_symbols[..., :rows, :columns]
        with timing.entropy_part():
            values = inside.ravel()
            digest.update(values)
            groups[0].append((values, self._z_table(tile), self._z_models))
        if estimate:
            estimated += self._engine.hyper_bits(inside)

        targets = self._engine.split(y)
        masks = self._masks(tile)

        def code(step: int, coding: Coding) -> np.ndarray:
            nonlocal estimated
            symbols = self._integers(coding.symbols(targets[step]))
            if masks is not None:
                symbols *= masks[step]
            if estimate:
                rate = coding.bits(symbols)
                estimated += float((rate if masks is None else rate * masks[step]).sum())
            with timing.entropy_part():
                values = _coded(symbols, masks, step)
                table = _coded(coding.table, masks, step).astype(self._tables.index_type)
                digest.update(values)
                groups[part_of_step[step]].append((values, table, self._y_models))
            on_progress((step + 1) / steps)
            return symbols

        steps = len(self._engine.step_scales)
        y_hat = self._engine.walk(z_symbols, code, portable)
        with timing.entropy_part():
            payloads = []
            for part in groups:
                encoder = AnsEncoder()
                for group in reversed(part):
                    encoder.push(*group)
                payloads.append(encoder.payload())
            return EncodedTile(payloads, estimated, y_hat)

    def _parts_of_steps(self, progressive: bool) -> list[int]:
        """Which of a tile's payloads each step's symbols are in."""
        scales = self._engine.step_scales
        return list(scales) if progressive else [0] * len(scales)

    def decode(
        self,
        tile: Tile,
        payloads: Sequence[bytes],
        digest: SymbolDigest,
        timing: Timing,
        portable: bool,
        on_progress: OnProgress = unheard,
        progressive: bool = False,
    ) -> Latents:
        """ŷ (1, M, h, w) of one tile.

        Args:
            payloads: one, or those of the first scales of a progressive file: latents of the others
                are what the model expects them to be.

        The others: as for `encode`.

        Raises:
            BitstreamError: if the payload holds what no encoder writes.
        """
        part_of_step = self._parts_of_steps(progressive)
        decoders = [_Payload(payload) for payload in payloads]
        n = self._info.config.hyper_channels
        rows, columns = tile.hyper_inside
        shape = (1, n, tile.place.height // HYPER, tile.place.width // HYPER)
        z_symbols = np.zeros(shape, np.int32)
        with timing.entropy_part():
            table = self._z_table(tile)
            symbols = decoders[0].pull(table, self._z_models)
            digest.update(symbols)
            if self._on_group is not None:
                self._on_group(table, symbols)
            z_symbols[..., :rows, :columns] = symbols.reshape(1, n, rows, columns)
        masks = self._masks(tile)

        steps = len(self._engine.step_scales)

        def code(step: int, coding: Coding) -> np.ndarray:
            on_progress(step / steps)
            index = coding.table
            if part_of_step[step] >= len(decoders):
                return np.zeros(index.shape, np.int32)
            with timing.entropy_part():
                table = _coded(index, masks, step).astype(self._tables.index_type)
                symbols = decoders[part_of_step[step]].pull(table, self._y_models)
                digest.update(symbols)
                if self._on_group is not None:
                    self._on_group(table, symbols)
                if masks is None:
                    return symbols.reshape(index.shape)
                placed = np.zeros(index.shape, np.int32)
                placed[masks[step]] = symbols
                return placed

        y_hat = self._engine.walk(z_symbols, code, portable)
        if not all(decoder.is_empty() for decoder in decoders):
            raise BitstreamError("has a payload that goes on after the last symbol")
        if len(decoders) <= max(part_of_step):
            return self._engine.fill(y_hat, len(decoders))
        return y_hat

    def least_bits(self, tile: Tile) -> float:
        """The fewest bits that the symbols of a tile can take: each its table's likeliest."""
        y = self._tables.y.least_bits().min() * self._info.config.latent_channels
        return float(np.prod(tile.inside) * y) + self.least_hyper_bits(tile)

    def least_hyper_bits(self, tile: Tile) -> float:
        """The fewest bits that the symbols of z of a tile can take."""
        return float(np.prod(tile.hyper_inside) * self._tables.z.least_bits().sum())

    def _z_table(self, tile: Tile) -> np.ndarray:
        """The table of every coded symbol of z, (N · rows · columns,) uint16."""
        rows, columns = tile.hyper_inside
        channels = np.arange(self._info.config.hyper_channels, dtype=np.uint16)
        return channels.repeat(rows * columns)

    def _masks(self, tile: Tile) -> list[np.ndarray] | None:
        """Masks, bool, of the symbols of each step that are coded; None if all are."""
        return None if tile.is_full else self._engine.masks(tile)

    def _integers(self, symbols: np.ndarray) -> np.ndarray:
        """Float symbols as contiguous int32."""
        if not bool(np.abs(symbols).max() <= LARGEST_SYMBOL):  # also false for a NaN
            raise DataError(
                f"{self._info.path}: gives latents beyond ±{LARGEST_SYMBOL} for this picture; the "
                "model has diverged, export an earlier checkpoint"
            )
        return np.ascontiguousarray(symbols, np.int32)


class _Payload(AnsDecoder):
    """A decoder that takes nothing from a payload of nothing: the coder would go on for ever."""

    def __init__(self, payload: bytes) -> None:
        super().__init__(payload)
        self._has_any = bool(payload)

    def pull(self, table: np.ndarray, models: SymbolModels) -> np.ndarray:
        if len(table) and not self._has_any:
            raise BitstreamError("has symbols, and no payload for them")
        return super().pull(table, models)


def _coded(x: np.ndarray, masks: list[np.ndarray] | None, step: int) -> np.ndarray:
    """The coded entries of a step's (1, C, h, w) array, in (channel, row, column) order."""
    return x.ravel() if masks is None else x[masks[step]]
