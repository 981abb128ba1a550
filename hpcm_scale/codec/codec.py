"""The codec: pictures to `.hpcm` bytes and back, by a trained model.

codec = Codec.load("model.safetensors")
data = codec.encode(image)
image = codec.decode(data)
"""

from pathlib import Path
from typing import TYPE_CHECKING, Self, Union

import numpy as np
from PIL import Image

from hpcm_scale.codec.aim import NO_AIM, Aim
from hpcm_scale.codec.bounded_engine import BoundedEngine
from hpcm_scale.codec.coding_result import Decoded, Encoded, OnProgress, unheard
from hpcm_scale.codec.engines.choose import engine_of, load_engine
from hpcm_scale.codec.engines.engine import Engine
from hpcm_scale.codec.images import Picture, picture_of
from hpcm_scale.codec.picture_decoder import PictureDecoder
from hpcm_scale.codec.picture_encoder import PictureEncoder
from hpcm_scale.errors import ArgumentError

if TYPE_CHECKING:
    import torch

    from hpcm_scale.numpy_engine.model import NumpyModel
    from hpcm_scale.weights.model_file import LoadedModel

MEMORY = 2 << 30
"""Default bytes that the network may work in, beside its parameters."""


class Codec:
    """A loaded model, ready to code any number of pictures.

    Args:
        model: from `load_model`, `load_numpy` or `load_engine`.
        portable: encode to files that decode anywhere, by exact arithmetic; else in the network's
            own floating point, whose files are certain to decode only where they were made.
            Decoding follows the file.
        exact_pixels: encode to files whose pixels are the same everywhere too, by a g_s in exact
            arithmetic; None for files that are, where `portable` and the model allow it. Decoding
            follows the file.
        memory: bytes the network may work in. Beside it there are the parameters and 8 bytes a
            pixel or so, for the picture and its latents. Pictures that do not fit are cut into
            tiles; decoding needs what encoding was given.

    Raises:
        CheckpointError: if the network's windows ask for absurd multiples of pixels.
        ArgumentError: for `exact_pixels` of files that are not portable.
    """

    def __init__(
        self,
        model: Union["LoadedModel", "NumpyModel", Engine],
        portable: bool = True,
        memory: int = MEMORY,
        exact_pixels: bool | None = None,
    ) -> None:
        if exact_pixels and not portable:
            raise ArgumentError(
                "exact_pixels: need exact arithmetic; leave out --fast, or portable=False"
            )
        bounded = BoundedEngine(engine_of(model), memory)
        self.info = bounded.info
        self.portable = portable
        self.identity = bounded.identity
        """The first bytes of the model's identity, which every file it makes carries."""
        self._encoder = PictureEncoder(bounded, portable, exact_pixels)
        self._decoder = PictureDecoder(bounded)

    @classmethod
    def load(
        cls,
        path: Path | str,
        device: Union["torch.device", str] = "cpu",
        memory: int = MEMORY,
        portable: bool = True,
        engine: str | None = None,
        exact_pixels: bool | None = None,
    ) -> Self:
        """A codec from a model file.

        Args:
            engine: "torch" or "numpy"; None for torch where it is installed.

        Raises:
            CheckpointError: if it is missing, damaged or not a model that can code.
            ConfigError: for an engine that is none, or that has no such device.
        """
        return cls(load_engine(path, engine, str(device)), portable, memory, exact_pixels)

    def encode(
        self,
        image: Image.Image | np.ndarray,
        quality: float | None = None,
        *,
        size: int | None = None,
        bpp: float | None = None,
        psnr: float | None = None,
        progressive: bool = False,
    ) -> bytes:
        """The `.hpcm` bytes of a PIL image or a uint8 array (H, W), (H, W, 3) or (H, W, 4).

        Args:
            quality, size, bpp, psnr: one of them at most, as of `Aim`, of a model of many rates.
            progressive: let the beginning of the file give a preview, for 12 bytes or so.

        Raises:
            DataError: if the image is of a kind or size that cannot be coded, or the aim cannot be
                met.
            ConfigError: if the aim is out of its range, or the model has one rate.
            CheckpointError: if the model has no exact arithmetic and the codec is portable.
        """
        aim = Aim(quality, size, bpp, psnr)
        return self.compress(picture_of(image), aim=aim, progressive=progressive).data

    def decode(self, data: bytes) -> Image.Image:
        """The picture in `.hpcm` bytes, in mode L, LA, RGB or RGBA.

        Raises:
            BitstreamError: as `decompress`.
        """
        return self.decompress(data).picture.to_pil()

    def preview(self, data: bytes) -> Image.Image:
        """A preview of the picture in the beginning of progressive `.hpcm` bytes.

        The last scale is not looked at. Nothing checks a preview: bytes that were altered give
        another one.

        Raises:
            BitstreamError: if `data` is not progressive, or ends before the first scale does.
        """
        return self.decompress(data, preview=True).picture.to_pil()

    def compress(
        self,
        picture: Picture,
        estimate: bool = False,
        reconstruct: bool = False,
        on_progress: OnProgress = unheard,
        aim: Aim = NO_AIM,
        progressive: bool = False,
    ) -> Encoded:
        """Encode one picture.

        Args:
            estimate: also add up the information content of the symbols under the model.
            reconstruct: also give the pixels that a decoder should.
            on_progress: told how far the encoding is.
            aim: for a model of many rates; sizes are those of the whole file.
            progressive: a payload for each scale of the model, smallest first.

        Raises:
            DataError: if it is too large, or too large for `memory` where the network must see all
                of it at once, if the model gives latents that are not numbers, or if the aim cannot
                be met.
            ConfigError: if there is an aim, and the model has one rate.
            CheckpointError: if the model has no exact arithmetic and the codec is portable.
        """
        return self._encoder.encode(picture, estimate, reconstruct, on_progress, aim, progressive)

    def check_aim(self, aim: Aim) -> None:
        """
        Raises:
            ConfigError: if there is an aim, and the model has one rate.
        """
        self._encoder.check_aim(aim)

    def decompress(
        self, data: bytes, on_progress: OnProgress = unheard, preview: bool = False
    ) -> Decoded:
        """Decode one picture.

        Args:
            on_progress: told how far the decoding is.
            preview: as `preview`.

        Raises:
            BitstreamError: if `data` is damaged, made by another model, or decodes to other
                symbols than were encoded, or to other pixels where they are exact.
        """
        return self._decoder.decode(data, on_progress, preview)

    def makes_exact_pixels(self) -> bool:
        """Whether files have exact pixels.

        Raises:
            CheckpointError: if they were asked for, and the model has no exact arithmetic for them.
        """
        return self._encoder.makes_exact_pixels()
