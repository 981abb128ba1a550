"""One coding tile: its latents to an entropy-coded payload, and back."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hpcm_scale.codec.coding_result import OnProgress, Timing, unheard
from hpcm_scale.codec.tiled_transforms import dense
from hpcm_scale.codec.tiles import HYPER, Tile, inside_mask
from hpcm_scale.entropy.coder import (
    LARGEST_SYMBOL,
    AnsDecoder,
    AnsEncoder,
    SymbolDigest,
    SymbolModels,
)
from hpcm_scale.entropy.exact.parameters import ExactParameters
from hpcm_scale.entropy.parameters import EntropyParameters, FloatParameters, StepCoding
from hpcm_scale.errors import BitstreamError, CheckpointError, DataError
from hpcm_scale.weights.model_file import LoadedModel


class EncodedTile(NamedTuple):
    """A tile's payload and what the model expected it to take."""

    payload: bytes
    estimated_bits: float
    """Information content of the symbols under the model's densities; 0 unless asked for."""
    y_hat: Tensor
    """(1, M, h, w): what a decoder will have."""


class TileCoder:
    """The coding steps of a model, walked with an entropy coder for one tile at a time.

    Args:
        model: from `load_model`.
    """

    def __init__(self, model: LoadedModel) -> None:
        self._info = model.info
        self._network = model.network
        self._tables = model.tables
        self._device = next(model.network.parameters()).device
        self._y_models = SymbolModels(model.tables.y)
        self._z_models = SymbolModels(model.tables.z)
        self._parameters: dict[bool, EntropyParameters] = {}

    def parameters(self, portable: bool) -> EntropyParameters:
        """The entropy parameters of one arithmetic, made when they are first needed.

        Raises:
            CheckpointError: if the model has no exact arithmetic and `portable` asks for it.
        """
        if portable not in self._parameters:
            kind = ExactParameters if portable else FloatParameters
            try:
                self._parameters[portable] = kind(self._network, self._tables)
            except CheckpointError as error:
                raise CheckpointError(f"{self._info.path}: {error}") from None
        return self._parameters[portable]

    def hyper_symbols(self, y: Tensor, tile: Tile, portable: bool) -> Tensor:
        """Symbols of z (1, N, h/4, w/4) int32 of a tile of y (1, M, h, w); 0 in the padding.

        Raises:
            DataError: if the model gives values that are not numbers, or absurdly large.
        """
        z = self._network.h_a(dense(y))
        symbols = self._integers(self.parameters(portable).hyper_symbols(z))
        rows, columns = tile.hyper_inside
        symbols[..., rows:, :] = 0
        symbols[..., columns:] = 0
        return symbols

    def encode(
        self,
        tile: Tile,
        y: Tensor,
        digest: SymbolDigest,
        timing: Timing,
        portable: bool,
        estimate: bool = False,
        on_progress: OnProgress = unheard,
    ) -> EncodedTile:
        """Code one tile.

        Args:
            y: (1, M, h, w), its latents.
            digest: updated with every symbol.
            timing: told what the entropy coding took.
            estimate: also add up the information content of the symbols.
            on_progress: told how far the tile is.

        Raises:
            DataError: as `hyper_symbols`.
        """
        z_symbols = self.hyper_symbols(y, tile, portable).contiguous()
        groups: list[tuple[np.ndarray, np.ndarray, SymbolModels]] = []
        estimated = 0.0
        rows, columns = tile.hyper_inside
        inside = z_symbols[..., :rows, :columns]
        with timing.entropy_part():
            values = inside.cpu().numpy().ravel()
            digest.update(values)
            groups.append((values, self._z_table(tile), self._z_models))
        if estimate:
            estimated += float(self._network.z_prior.bits(inside).sum())

        targets = self._network.partition.split(dense(y))
        masks = self._step_masks(tile)

        def code(step: int, coding: StepCoding) -> Tensor:
            nonlocal estimated
            symbols = self._integers(coding.symbols(targets[step]))
            if masks is not None:
                symbols *= masks[step]
            if estimate:
                rate = self._network.density.bits(coding.residual(symbols), coding.scale)
                estimated += float((rate if masks is None else rate * masks[step]).sum())
            with timing.entropy_part():
                values = _coded(symbols, masks, step)
                table = _coded(coding.table, masks, step).astype(self._tables.index_type)
                digest.update(values)
                groups.append((values, table, self._y_models))
            on_progress((step + 1) / steps)
            # In the memory order that a decoder has them in: sums may be taken in another order.
            return symbols.contiguous()

        steps = len(self._network.partition.step_scales)
        y_hat = self.parameters(portable).walk(z_symbols, code)
        with timing.entropy_part():
            encoder = AnsEncoder()
            for group in reversed(groups):
                encoder.push(*group)
            return EncodedTile(encoder.payload(), estimated, y_hat)

    def decode(
        self,
        tile: Tile,
        payload: bytes,
        digest: SymbolDigest,
        timing: Timing,
        portable: bool,
        on_progress: OnProgress = unheard,
    ) -> Tensor:
        """ŷ (1, M, h, w) of one tile.

        Args: as for `encode`.

        Raises:
            BitstreamError: if the payload holds what no encoder writes.
        """
        decoder = AnsDecoder(payload)
        n = self._info.config.hyper_channels
        rows, columns = tile.hyper_inside
        z_symbols = torch.zeros(
            (1, n, tile.place.height // HYPER, tile.place.width // HYPER), dtype=torch.int32
        )
        with timing.entropy_part():
            symbols = decoder.pull(self._z_table(tile), self._z_models)
            digest.update(symbols)
            z_symbols[..., :rows, :columns] = torch.from_numpy(symbols).view(1, n, rows, columns)
        masks = self._step_masks(tile)

        steps = len(self._network.partition.step_scales)

        def code(step: int, coding: StepCoding) -> Tensor:
            on_progress(step / steps)
            index = coding.table
            with timing.entropy_part():
                table = _coded(index, masks, step).astype(self._tables.index_type)
                symbols = decoder.pull(table, self._y_models)
                digest.update(symbols)
                values = torch.from_numpy(symbols).to(self._device)
                if masks is None:
                    return values.view(index.shape)
                placed = torch.zeros(index.shape, dtype=torch.int32, device=self._device)
                placed[masks[step]] = values
                return placed

        y_hat = self.parameters(portable).walk(z_symbols.to(self._device), code)
        if not decoder.is_empty():
            raise BitstreamError("has a payload that goes on after the last symbol")
        return y_hat

    def least_bits(self, tile: Tile) -> float:
        """The fewest bits that the symbols of a tile can take: each its table's likeliest."""
        y = self._tables.y.least_bits().min() * self._info.config.latent_channels
        z = self._tables.z.least_bits().sum()
        return float(np.prod(tile.inside) * y + np.prod(tile.hyper_inside) * z)

    def _z_table(self, tile: Tile) -> np.ndarray:
        """The table of every coded symbol of z, (N · rows · columns,) uint16."""
        rows, columns = tile.hyper_inside
        channels = np.arange(self._info.config.hyper_channels, dtype=np.uint16)
        return channels.repeat(rows * columns)

    def _step_masks(self, tile: Tile) -> list[Tensor] | None:
        """Masks, bool, of the symbols of each step that are coded; None if all are."""
        if tile.is_full:
            return None
        mask = inside_mask(tile, self._info.config.latent_channels, self._device)
        return [part > 0 for part in self._network.partition.split(dense(mask))]

    def _integers(self, symbols: Tensor) -> Tensor:
        """Float symbols as int32."""
        if not bool(symbols.abs().max() <= LARGEST_SYMBOL):  # also false for a NaN
            raise DataError(
                f"{self._info.path}: gives latents beyond ±{LARGEST_SYMBOL} for this picture; the "
                "model has diverged, export an earlier checkpoint"
            )
        return symbols.to(torch.int32)


def _coded(x: Tensor, masks: list[Tensor] | None, step: int) -> np.ndarray:
    """The coded entries of a step's (1, C, h, w) tensor, in (channel, row, column) order."""
    return (x.contiguous().flatten() if masks is None else x[masks[step]]).cpu().numpy()
