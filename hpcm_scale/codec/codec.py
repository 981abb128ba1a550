"""The codec: pictures to `.hpcm` bytes and back, by a trained model.

codec = Codec.load("model.safetensors")
data = codec.encode(image)
image = codec.decode(data)
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hpcm_scale.codec import container
from hpcm_scale.codec.coding_result import Decoded, Encoded, Timing
from hpcm_scale.codec.images import (
    Picture,
    check_size,
    pack_alpha,
    pack_icc,
    picture_of,
    unpack_alpha,
    unpack_icc,
)
from hpcm_scale.codec.tiled_transforms import analyse, dense, synthesise
from hpcm_scale.codec.tiles import (
    HYPER,
    LATENT,
    Tile,
    balanced_tile,
    canvas,
    coding_tiles,
    inside_mask,
    largest_tile,
)
from hpcm_scale.entropy.coder import (
    LARGEST_SYMBOL,
    AnsDecoder,
    AnsEncoder,
    SymbolDigest,
    SymbolModels,
)
from hpcm_scale.entropy.exact.parameters import ExactParameters
from hpcm_scale.entropy.parameters import EntropyParameters, FloatParameters
from hpcm_scale.errors import BitstreamError, CheckpointError, DataError
from hpcm_scale.weights.model_file import LoadedModel, load_model

MEMORY = 2 << 30
"""Bytes the network may work in, beside its parameters, unless told."""
_SLACK_BITS = 64
"""What an entropy coder's state may hold beyond the information in its payload."""


@dataclass
class _Groups:
    """The symbols of one tile in coding order, each group with the tables that code it."""

    groups: list[tuple[np.ndarray, np.ndarray, SymbolModels]] = field(default_factory=list)
    bits: float = 0.0


class Codec:
    """A loaded model, ready to code any number of pictures.

    Args:
        model: from `load_model`.
        portable: encode to files that decode anywhere, by exact arithmetic; else in the network's
            own floating point, whose files are certain to decode only where they were made.
            Decoding does as the file says.
        paths: entropy paths that take the place of this codec's own.
        memory: bytes the network may work in. Beside it there are the parameters and 8 bytes a
            pixel or so, for the picture and its latents. Pictures that do not fit are cut into
            tiles; decoding needs what encoding was given.
    """

    def __init__(
        self,
        model: LoadedModel,
        portable: bool = True,
        paths: Sequence[EntropyParameters] = (),
        memory: int = MEMORY,
    ) -> None:
        self.info = model.info
        self.portable = portable
        self._network = model.network
        self._tables = model.tables
        self._paths = {path.portable: path for path in paths}
        self._y_models = SymbolModels(model.tables.y)
        self._z_models = SymbolModels(model.tables.z)
        self._device = next(model.network.parameters()).device
        self._memory = memory
        self._largest_tile = largest_tile(
            self.info.config, model.network.image_multiple, self._memory
        )

    @classmethod
    def load(
        cls,
        path: Path | str,
        device: torch.device | str = "cpu",
        memory: int = MEMORY,
        portable: bool = True,
    ) -> Self:
        """A codec from a model file.

        Raises:
            CheckpointError: if it is missing, damaged or not a model that can code.
        """
        return cls(load_model(path, device), portable, memory=memory)

    @property
    def identity(self) -> bytes:
        """What files made by this model carry."""
        return bytes.fromhex(self.info.identity)[: container.IDENTITY_BYTES]

    def encode(self, image: Image.Image | np.ndarray) -> bytes:
        """The `.hpcm` bytes of a PIL image or a uint8 array (H, W), (H, W, 3) or (H, W, 4).

        Raises:
            DataError: if the image is of a kind or size that cannot be coded.
            CheckpointError: if the model has no exact arithmetic and the codec is portable.
        """
        return self.compress(picture_of(image)).data

    def encode_batch(self, images: Sequence[Image.Image | np.ndarray]) -> list[bytes]:
        """`encode` for several images; those of equal size pass through g_a and h_a together."""
        pictures = [picture_of(image) for image in images]
        sizes: dict[tuple[int, int], list[int]] = {}
        for i, picture in enumerate(pictures):
            sizes.setdefault((picture.height, picture.width), []).append(i)
        results = [b""] * len(pictures)
        for members in sizes.values():
            encoded = self._compress([pictures[i] for i in members], estimate=False)
            for i, result in zip(members, encoded, strict=True):
                results[i] = result.data
        return results

    def decode(self, data: bytes) -> Image.Image:
        """The picture in `.hpcm` bytes, in mode L, LA, RGB or RGBA.

        Raises:
            BitstreamError: as `decompress`.
        """
        return self.decompress(data).picture.to_pil()

    def compress(self, picture: Picture, estimate: bool = False) -> Encoded:
        """Encode one picture.

        Args:
            estimate: also add up what the model's densities say the symbols cost.

        Raises:
            DataError: if it is too large, or the model gives latents that are not numbers.
        """
        return self._compress([picture], estimate)[0]

    def decompress(self, data: bytes) -> Decoded:
        """Decode one picture.

        Raises:
            BitstreamError: if `data` is damaged, made by another model, or decodes to other
                symbols than were encoded.
        """
        timing = Timing()
        with timing.network_part(), torch.inference_mode():
            parsed = container.read(data)
            header = parsed.header
            self._check(header, parsed.payloads)
            alpha = icc = None
            if parsed.icc is not None:
                icc = unpack_icc(parsed.icc)
            if parsed.alpha is not None:
                alpha = unpack_alpha(parsed.alpha, header.width, header.height)
            y_hat = self._decode_latents(parsed, timing)
            pixels = synthesise(
                self._network, y_hat, (header.height, header.width), header.grey, self._memory
            )
        return Decoded(Picture(pixels, alpha, icc), timing)

    def _compress(self, pictures: list[Picture], estimate: bool) -> list[Encoded]:
        """Encode pictures of one size."""
        shared = Timing()
        height, width = pictures[0].height, pictures[0].width
        check_size(width, height, "image")
        multiple = self._network.image_multiple
        path = self._path(self.portable)
        tile = balanced_tile(height, width, multiple, self._largest_tile)
        tiles = coding_tiles(height, width, multiple, tile)
        with shared.network_part(), torch.inference_mode():
            y = analyse(self._network, [p.pixels for p in pictures], self._memory)
            z_symbols = [path.hyper_symbols(self._network.h_a(dense(t.place.of(y)))) for t in tiles]
        return [
            self._assemble(
                picture,
                tile,
                [(t, y[i : i + 1], z[i : i + 1]) for t, z in zip(tiles, z_symbols, strict=True)],
                estimate,
                Timing(network=shared.network / len(pictures)),
            )
            for i, picture in enumerate(pictures)
        ]

    def _assemble(
        self,
        picture: Picture,
        tile: tuple[int, int] | None,
        parts: list[tuple[Tile, Tensor, Tensor]],
        estimate: bool,
        timing: Timing,
    ) -> Encoded:
        """The file of one picture from its latents y and its z symbols, tile by tile."""
        icc = None if picture.icc is None else pack_icc(picture.icc)
        alpha = None if picture.alpha is None else pack_alpha(picture.alpha)
        header = container.Header(
            self.identity,
            picture.width,
            picture.height,
            grey=picture.pixels.ndim == 2,
            portable=self.portable,
            tile=tile,
        )
        digest = SymbolDigest(container.digest_seed(header, icc, alpha))
        payloads, estimated = [], 0.0
        with timing.network_part(), torch.inference_mode():
            for place, y, z_symbols in parts:
                coded = self._encode_tile(place, y, z_symbols, digest, estimate, timing)
                estimated += coded.bits
                with timing.entropy_part():
                    pusher = AnsEncoder()
                    for group in reversed(coded.groups):
                        pusher.push(*group)
                    payloads.append(pusher.payload())
        header = replace(header, digest=digest.value)
        return Encoded(
            container.write(container.Container(header, tuple(payloads), icc, alpha)),
            picture.width,
            picture.height,
            sum(map(len, payloads)),
            estimated if estimate else None,
            timing,
            picture.notices,
        )

    def _encode_tile(
        self,
        tile: Tile,
        y: Tensor,
        z_symbols: Tensor,
        digest: SymbolDigest,
        estimate: bool,
        timing: Timing,
    ) -> _Groups:
        """Walk the coding steps of one tile and record its symbols."""
        out = _Groups()
        z_symbols = self._integers(z_symbols)
        rows, columns = tile.hyper_inside
        z_symbols[..., rows:, :] = 0
        z_symbols[..., columns:] = 0
        with timing.entropy_part():
            symbols = z_symbols[..., :rows, :columns].cpu().numpy().ravel()
            digest.update(symbols)
            out.groups.append((symbols, self._z_table(tile), self._z_models))
        if estimate:
            coded = z_symbols[..., :rows, :columns]
            out.bits += float(self._network.z_prior.bits(coded).sum())

        targets = self._network.partition.split(dense(tile.place.of(y)))
        masks = self._step_masks(tile)

        def code(step: int, index: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
            symbols = self._integers((targets[step] - mean).round())
            if masks is not None:
                symbols *= masks[step]
            if estimate:
                priced = self._network.density.bits(symbols, scale)
                out.bits += float((priced if masks is None else priced * masks[step]).sum())
            with timing.entropy_part():
                values, table = (_coded(x, masks, step) for x in (symbols, index.to(torch.uint8)))
                digest.update(values)
                out.groups.append((values, table, self._y_models))
            return symbols

        self._path(self.portable).walk(z_symbols, code)
        return out

    def _path(self, portable: bool) -> EntropyParameters:
        """The entropy path of one kind, made when it is first needed."""
        if portable not in self._paths:
            path = ExactParameters if portable else FloatParameters
            try:
                self._paths[portable] = path(self._network, self._tables)
            except CheckpointError as error:
                raise CheckpointError(f"{self.info.path}: {error}") from None
        return self._paths[portable]

    def _decode_latents(self, parsed: container.Container, timing: Timing) -> Tensor:
        """ŷ (1, M, H/16, W/16) of the whole canvas."""
        header, config = parsed.header, self.info.config
        multiple = self._network.image_multiple
        sides = canvas(header.height, header.width, multiple)
        y_hat = torch.empty(
            (1, config.latent_channels, sides[0] // LATENT, sides[1] // LATENT),
            device=self._device,
            memory_format=torch.channels_last,
        )
        tiles = coding_tiles(header.height, header.width, multiple, header.tile)
        path = self._path(header.portable)
        digest = SymbolDigest(container.digest_seed(header, parsed.icc, parsed.alpha))
        complete = True
        for tile, payload in zip(tiles, parsed.payloads, strict=True):
            puller = AnsDecoder(payload)
            try:
                decoded = self._decode_tile(tile, puller, digest, path, timing)
                tile.place.of(y_hat).copy_(decoded)
            except BitstreamError:
                # Only wrong tables make an undamaged payload hold what no encoder writes.
                complete = False
            if not (complete and puller.is_empty()):
                complete = False
                break
        if not complete or digest.value != header.digest:
            raise BitstreamError(
                "decodes to other symbols than were encoded, though its arithmetic is exact: it "
                "was altered, or this machine or program is at fault"
                if header.portable
                else "decodes to other symbols than were encoded: it was encoded with --fast, and "
                "this machine's floating-point results differ from the encoder's (device, library "
                f"or number of threads; here {self._device}, {torch.get_num_threads()} threads); "
                "decode it as it was encoded, or encode it again without --fast"
            )
        return y_hat

    def _decode_tile(
        self,
        tile: Tile,
        puller: AnsDecoder,
        digest: SymbolDigest,
        path: EntropyParameters,
        timing: Timing,
    ) -> Tensor:
        """ŷ of one tile."""
        n = self.info.config.hyper_channels
        rows, columns = tile.hyper_inside
        z_symbols = torch.zeros(
            (1, n, tile.place.height // HYPER, tile.place.width // HYPER), dtype=torch.int32
        )
        with timing.entropy_part():
            symbols = puller.pull(self._z_table(tile), self._z_models)
            digest.update(symbols)
            z_symbols[..., :rows, :columns] = torch.from_numpy(symbols).view(1, n, rows, columns)
        masks = self._step_masks(tile)

        def code(step: int, index: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
            with timing.entropy_part():
                symbols = puller.pull(_coded(index.to(torch.uint8), masks, step), self._y_models)
                digest.update(symbols)
                values = torch.from_numpy(symbols).to(self._device)
                if masks is None:
                    return values.view(index.shape)
                placed = torch.zeros(index.shape, dtype=torch.int32, device=self._device)
                placed[masks[step]] = values
                return placed

        return path.walk(z_symbols.to(self._device), code)

    def _check(self, header: container.Header, payloads: tuple[bytes, ...]) -> None:
        """Refuse what this codec cannot decode, before anything of the picture's size is made."""
        if header.identity != self.identity:
            raise BitstreamError(
                f"was made by model {header.identity.hex()}, "
                f"this model is {self.identity.hex()} ({self.info.label}, {self.info.path})"
            )
        if header.portable:
            try:
                self._path(True)
            except CheckpointError as error:
                raise BitstreamError(f"is portable, which its model cannot be: {error}") from None
        try:
            check_size(header.width, header.height, "its header")
        except DataError as error:
            raise BitstreamError(str(error)) from None
        multiple = self._network.image_multiple
        if header.tile is not None and any(side % multiple for side in header.tile):
            raise BitstreamError(
                f"has tiles of {header.tile[0]}×{header.tile[1]}, not multiples of {multiple}"
            )
        y_least = self._tables.y.least_bits().min() * self.info.config.latent_channels
        z_least = self._tables.z.least_bits().sum()
        tiles = coding_tiles(header.height, header.width, multiple, header.tile)
        least = sum(
            np.prod(tile.inside) * y_least + np.prod(tile.hyper_inside) * z_least for tile in tiles
        )
        total = sum(map(len, payloads))
        # The coder would take an empty payload for symbols without end.
        if least > 8 * total + _SLACK_BITS or not all(payloads):
            raise BitstreamError(
                f"claims {header.width}×{header.height} pixels in {len(payloads)} tiles, more than "
                f"its {total} bytes of payload can hold"
            )
        area = tiles[0].place.height * tiles[0].place.width * LATENT**2
        if area > self._largest_tile**2:
            needed = self._memory * area / self._largest_tile**2
            raise BitstreamError(
                f"has tiles of {area} pixels, which take about {needed / 2**30:.2g} GiB to decode; "
                f"{self._memory / 2**30:.2g} are allowed (--memory)"
            )

    def _z_table(self, tile: Tile) -> np.ndarray:
        rows, columns = tile.hyper_inside
        channels = np.arange(self.info.config.hyper_channels, dtype=np.uint16)
        return channels.repeat(rows * columns)

    def _step_masks(self, tile: Tile) -> list[Tensor] | None:
        """Which symbols of each step are coded, bool; None if all are."""
        if tile.is_full:
            return None
        mask = inside_mask(tile, self.info.config.latent_channels, self._device)
        return [part > 0 for part in self._network.partition.split(dense(mask))]

    def _integers(self, symbols: Tensor) -> Tensor:
        """Float symbols as int32."""
        if not bool(symbols.abs().max() <= LARGEST_SYMBOL):  # also false for a NaN
            raise DataError(
                f"{self.info.path}: gives latents beyond ±{LARGEST_SYMBOL} for this picture; the "
                "model has diverged, export an earlier checkpoint"
            )
        return symbols.to(torch.int32)


def _coded(x: Tensor, masks: list[Tensor] | None, step: int) -> np.ndarray:
    """The coded entries of a step's (1, C, h, w) tensor, in (channel, row, column) order."""
    return (x.contiguous().flatten() if masks is None else x[masks[step]]).cpu().numpy()
