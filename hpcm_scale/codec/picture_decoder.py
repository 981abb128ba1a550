"""The decoder: the bytes of a file to its picture, by the model that made it."""

from hpcm_scale.codec import container
from hpcm_scale.codec.bounded_engine import TRANSFORM_SHARE, BoundedEngine, pixel_digest
from hpcm_scale.codec.coding_result import Decoded, OnProgress, Timing, part_of
from hpcm_scale.codec.engines.engine import Latents
from hpcm_scale.codec.images import Picture, check_size
from hpcm_scale.codec.metadata import Metadata
from hpcm_scale.codec.sections import unpack_alpha, unpack_icc, unpack_metadata
from hpcm_scale.codec.tiles import LATENT, canvas, coding_tiles
from hpcm_scale.entropy.coder import SymbolDigest
from hpcm_scale.errors import BitstreamError, CheckpointError, DataError
from hpcm_scale.units import gib

_SLACK_BITS = 64
"""Bits an entropy coder's state may hold beyond the information in its payload."""


class PictureDecoder:
    """Files to pictures, each in the arithmetic its header names.

    Args:
        bounded: the model's engine.
    """

    def __init__(self, bounded: BoundedEngine) -> None:
        self._bounded = bounded
        self._engine = bounded.engine

    def decode(self, data: bytes, on_progress: OnProgress, preview: bool) -> Decoded:
        """One file's picture; arguments and errors as of `Codec.decompress`."""
        timing = Timing()
        with timing.network_part(), self._engine.computing():
            parsed = container.read_start(data) if preview else container.read(data)
            header = parsed.header
            self._check(header, parsed.payloads)
            alpha, icc, metadata = None, None, Metadata()
            if parsed.icc is not None:
                icc = unpack_icc(parsed.icc)
            if parsed.alpha is not None:
                alpha = unpack_alpha(parsed.alpha, header.width, header.height)
            if parsed.metadata is not None:
                metadata = unpack_metadata(parsed.metadata)
            within = part_of(on_progress, 0, 1 - TRANSFORM_SHARE)
            y_hat = self._decode_latents(parsed, timing, within, preview)
            last = part_of(on_progress, 1 - TRANSFORM_SHARE, 1)
            pixels = self._bounded.pixels(y_hat, header, last)
            wanted = None if preview else header.pixel_digest
            if wanted is not None and pixel_digest(pixels) != wanted:
                raise BitstreamError(
                    "decodes to other pixels than were encoded, though its arithmetic is exact: it "
                    "was altered, or this machine or program is at fault"
                )
        return Decoded(Picture(pixels, alpha, icc, metadata=metadata), timing)

    def _decode_latents(
        self,
        parsed: container.Container,
        timing: Timing,
        on_progress: OnProgress,
        preview: bool,
    ) -> Latents:
        """ŷ (1, M, H/16, W/16) of the whole canvas."""
        header = parsed.header
        sides = canvas(header.height, header.width, self._bounded.multiple)
        y_hat = self._engine.transforms.empty(sides[0] // LATENT, sides[1] // LATENT)
        tiles = coding_tiles(header.height, header.width, self._bounded.multiple, header.tile)
        digest = SymbolDigest(container.digest_seed(parsed))
        read = parsed.payloads
        if preview:
            read = read[: (header.scales - 1) * len(tiles)]
        try:
            for i, tile in enumerate(tiles):
                within = part_of(on_progress, i / len(tiles), (i + 1) / len(tiles))
                decoded = self._bounded.tile_coder.decode(
                    tile,
                    read[i :: len(tiles)],
                    digest,
                    timing,
                    header.portable,
                    within,
                    header.scales > 1,
                )
                tile.place.of(y_hat)[...] = decoded
        except BitstreamError:
            # Only wrong tables make an undamaged payload hold what no encoder writes.
            equal = False
        else:
            equal = preview or digest.value == header.digest
        if not equal:
            raise BitstreamError(
                "decodes to other symbols than were encoded, though its arithmetic is exact: it "
                "was altered, or this machine or program is at fault"
                if header.portable
                else "decodes to other symbols than were encoded: it was encoded with --fast, and "
                "this machine's floating-point results differ from the encoder's (device, library "
                f"or number of threads; here {self._engine.place}); "
                "decode it as it was encoded, or encode it again without --fast"
            )
        return y_hat

    def _check(self, header: container.Header, payloads: tuple[bytes, ...]) -> None:
        """Refuse what this codec cannot decode, before anything of the picture's size is made."""
        info, identity = self._engine.info, self._bounded.identity
        if header.identity != identity:
            raise BitstreamError(
                f"was made by model {header.identity.hex()}, "
                f"this model is {identity.hex()} ({info.label}, {info.path})"
            )
        try:
            self._engine.prepare(header.portable)
        except CheckpointError as error:
            kind = "portable, which its model cannot be" if header.portable else "not portable"
            raise BitstreamError(f"is {kind}: {error}") from None
        try:
            if header.pixel_digest is not None:
                self._engine.prepare_pixels()
        except CheckpointError as error:
            raise BitstreamError(f"has exact pixels, its model none: {error}") from None
        try:
            check_size(header.width, header.height, "its header")
            self._bounded.check_memory(header.height, header.width, "its header")
        except DataError as error:
            raise BitstreamError(str(error)) from None
        if (header.rate is not None) != bool(info.config.rates):
            has = (
                "has no rate, and its model many"
                if header.rate is None
                else "has a rate, and its model but one"
            )
            raise BitstreamError(f"{has}; it was altered")
        scales = self._bounded.scales
        if header.scales not in (1, scales):
            raise BitstreamError(f"has {header.scales} scales, its model {scales}; it was altered")
        multiple = self._bounded.multiple
        if header.tile is not None and any(side % multiple for side in header.tile):
            raise BitstreamError(
                f"has tiles of {header.tile[0]}×{header.tile[1]}, not multiples of {multiple}"
            )
        tiles = coding_tiles(header.height, header.width, multiple, header.tile)
        least = sum(self._bounded.tile_coder.least_bits(tile) for tile in tiles)
        total = sum(map(len, payloads))
        # Of a preview only the first of the payloads need be there, with the symbols of z.
        if len(payloads) < header.tiles * header.scales:
            least = sum(self._bounded.tile_coder.least_hyper_bits(tile) for tile in tiles)
        # The coder would take an empty payload for symbols without end.
        if least > 8 * total + _SLACK_BITS * header.scales or not all(payloads[: header.tiles]):
            raise BitstreamError(
                f"claims {header.width}×{header.height} pixels in {len(payloads)} tiles, more than "
                f"its {total} bytes of payload can hold"
            )
        area = tiles[0].place.height * tiles[0].place.width * LATENT**2
        if area > self._bounded.largest_tile**2 and not self._engine.global_context:
            needed = self._bounded.memory * area / self._bounded.largest_tile**2
            raise BitstreamError(
                f"has tiles of {area} pixels, which take about {gib(needed)} to decode; "
                f"{gib(self._bounded.memory)} are allowed (--memory)"
            )
