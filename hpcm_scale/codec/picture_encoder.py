"""The encoder: a picture to the bytes of its file, at a rate that meets an aim."""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from hpcm_scale.codec import container
from hpcm_scale.codec.aim import Aim, largest_within, smallest_reaching
from hpcm_scale.codec.bounded_engine import TRANSFORM_SHARE, BoundedEngine, pixel_digest
from hpcm_scale.codec.coding_result import Encoded, OnProgress, Timing, part_of, unheard
from hpcm_scale.codec.engines.engine import Latents
from hpcm_scale.codec.images import Picture, check_size
from hpcm_scale.codec.sections import pack_alpha, pack_icc, pack_metadata
from hpcm_scale.codec.tiles import coding_tiles
from hpcm_scale.entropy.coder import SymbolDigest
from hpcm_scale.errors import CheckpointError, ConfigError
from hpcm_scale.units import psnr_of


class PictureEncoder:
    """Pictures to files, in one arithmetic.

    Args:
        bounded: the model's engine.
        portable, exact_pixels: as of `Codec`.
    """

    def __init__(self, bounded: BoundedEngine, portable: bool, exact_pixels: bool | None) -> None:
        self.portable = portable
        self._bounded = bounded
        self._engine = bounded.engine
        self._info = bounded.info
        self._exact_pixels = exact_pixels

    def encode(
        self,
        picture: Picture,
        estimate: bool,
        reconstruct: bool,
        on_progress: OnProgress,
        aim: Aim,
        progressive: bool,
    ) -> Encoded:
        """One picture's file; arguments and errors as of `Codec.compress`."""
        self.check_aim(aim)
        check_size(picture.width, picture.height, "image")
        self._engine.prepare(self.portable)
        exact = self.makes_exact_pixels()
        estimate = estimate and self._engine.prices
        self._bounded.check_memory(picture.height, picture.width, "image")
        timing = Timing()
        with timing.network_part(), self._engine.computing():
            first = part_of(on_progress, 0, TRANSFORM_SHARE)
            y = self._bounded.latents(picture.pixels, first)
            within = part_of(on_progress, TRANSFORM_SHARE, 1)

            def code(rate: int | None, last: bool = True, pixels: bool = False) -> Encoded:
                heard = within if last else unheard
                wanted = _Wanted(estimate and last, pixels, progressive, exact, exact and last)
                return self._code(picture, y, rate, timing, wanted, heard)

            rate = self._rate_for(aim, picture, code)
            return code(rate, pixels=reconstruct)

    def check_aim(self, aim: Aim) -> None:
        """
        Raises:
            ConfigError: if there is an aim, and the model has one rate.
        """
        if not aim.is_default and not self._info.config.rates:
            raise ConfigError(
                f"quality, size, bpp, psnr: {self._info.label} has one rate; choose a model of many"
            )

    def makes_exact_pixels(self) -> bool:
        """Whether files have exact pixels.

        Raises:
            CheckpointError: if they were asked for, and the model has no exact arithmetic for them.
        """
        if self._exact_pixels is False or not self.portable:
            return False
        try:
            self._engine.prepare_pixels()
        except CheckpointError:
            if self._exact_pixels:
                raise
            return False
        return True

    def _rate_for(
        self, aim: Aim, picture: Picture, code: Callable[[int, bool, bool], Encoded]
    ) -> int | None:
        """The rate that meets an aim; None for a model of one rate."""
        if not self._info.config.rates:
            return None
        if not aim.needs_search:
            return aim.rate()
        limit = aim.largest_size(picture.width * picture.height)
        if limit is not None:
            return largest_within(lambda rate: len(code(rate, False, False).data), limit, "image")

        def quality(rate: int) -> float:
            decoded = code(rate, False, True).reconstruction
            assert decoded is not None  # it was asked for
            return psnr_of(picture.pixels, decoded)

        assert aim.psnr is not None  # the aim that is left
        return smallest_reaching(quality, aim.psnr, "image")

    def _code(
        self,
        picture: Picture,
        y: Latents,
        rate: int | None,
        timing: Timing,
        wanted: "_Wanted",
        on_progress: OnProgress,
    ) -> Encoded:
        """A picture's file from its latents (1, M, H/16, W/16), which stay as they are."""
        tile = self._bounded.coding_tile(picture.height, picture.width)
        header = container.Header(
            self._bounded.identity,
            picture.width,
            picture.height,
            grey=picture.pixels.ndim == 2,
            portable=self.portable,
            tile=tile,
            rate=rate,
            scales=self._bounded.scales if wanted.progressive else 1,
            pixel_digest=0 if wanted.exact_pixels else None,
        )
        unfinished = container.Container(
            header,
            payloads=(),
            icc=None if picture.icc is None else pack_icc(picture.icc),
            alpha=None if picture.alpha is None else pack_alpha(picture.alpha),
            metadata=pack_metadata(picture.metadata),
        )
        digest = SymbolDigest(container.digest_seed(unfinished))
        gain = self._bounded.gain(rate)
        gained = y if gain is None else y * gain
        decoding = wanted.pixels or wanted.pixel_digest
        y_hat = self._engine.transforms.empty(*y.shape[2:]) if decoding else None
        parts = coding_tiles(picture.height, picture.width, self._bounded.multiple, tile)
        by_scale: list[list[bytes]] = [[] for _ in range(header.scales)]
        bits = 0.0
        for i, part in enumerate(parts):
            coded = self._bounded.tile_coder.encode(
                part,
                part.place.of(gained),
                digest,
                timing,
                self.portable,
                wanted.estimate,
                part_of(on_progress, i / len(parts), (i + 1) / len(parts)),
                header.scales > 1,
            )
            for payloads, payload in zip(by_scale, coded.payloads, strict=True):
                payloads.append(payload)
            bits += coded.estimated_bits
            if y_hat is not None:
                part.place.of(y_hat)[...] = coded.y_hat
        every = tuple(payload for payloads in by_scale for payload in payloads)
        pixels = None if y_hat is None else self._bounded.pixels(y_hat, header)
        header = replace(header, digest=digest.value)
        if wanted.pixel_digest:
            assert pixels is not None  # the digest had them made
            header = replace(header, pixel_digest=pixel_digest(pixels))
        finished = replace(unfinished, header=header, payloads=every)
        return Encoded(
            container.write(finished),
            picture.width,
            picture.height,
            sum(map(len, every)),
            len(finished.metadata or b""),
            bits if wanted.estimate else None,
            timing,
            picture.notices,
            pixels if wanted.pixels else None,
            rate,
        )


class _Wanted(NamedTuple):
    """Results that an encoding is to give beside the symbols."""

    estimate: bool
    pixels: bool
    progressive: bool
    exact_pixels: bool
    pixel_digest: bool
    """Whether the digest of exact pixels is to be right; not for the size of a file alone."""
