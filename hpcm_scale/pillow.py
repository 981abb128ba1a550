"""`.hpcm` in every program that reads and writes images through Pillow.

>>> import hpcm_scale.pillow
>>> from PIL import Image
>>> Image.new("RGB", (80, 60), "teal").save("/tmp/teal.hpcm", quality=60)
>>> image = Image.open("/tmp/teal.hpcm")
>>> image.size, image.get_format_mimetype()
((80, 60), 'image/x-hpcm')

Opening reads the header and the tags; pixels are decoded when they are first asked for, by the
model that the file names (of the folder HPCM_MODELS, or one that comes with the package). `save`
takes the options of `hpcm_scale.write_image`: quality, size, bpp, psnr, progressive, exact_pixels,
model, engine, memory; and, as Pillow's own formats do, exif, xmp, icc_profile and dpi, or None for
none, else the image's.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from PIL import Image, ImageFile

from hpcm_scale.codec import container
from hpcm_scale.codec.aim import Aim, quality_of
from hpcm_scale.codec.codec import MEMORY
from hpcm_scale.codec.image_io import MIME, decoder_of, encoded
from hpcm_scale.codec.images import picture_of
from hpcm_scale.codec.metadata import Metadata
from hpcm_scale.codec.metadata.tags import is_rgb_profile
from hpcm_scale.codec.sections import unpack_icc, unpack_metadata
from hpcm_scale.errors import ConfigError, HpcmError

FORMAT = "HPCM"
EXTENSION = ".hpcm"
_TAGS = ("exif", "xmp", "icc_profile", "dpi")
_AIMS = ("quality", "size", "bpp", "psnr")
_OWN = ("progressive", "exact_pixels", "model", "engine", "memory")


class HpcmImageFile(ImageFile.ImageFile):
    """A `.hpcm` file whose pixels are decoded when they are first needed."""

    format = FORMAT
    format_description = "HPCM learned image compression"
    _coded: tuple[bytes, bytes] | None = None
    """The file and its model's identity until pixels are decoded; copies by pickle have pixels."""

    def _open(self) -> None:
        assert self.fp is not None
        data = self.fp.read()
        if not _accept(data):
            raise SyntaxError("not a .hpcm file")
        with _as_pillow_says_it():
            parsed = container.read(data)
            icc = None if parsed.icc is None else unpack_icc(parsed.icc)
            tags = Metadata() if parsed.metadata is None else unpack_metadata(parsed.metadata)
        header = parsed.header
        grey = header.grey and not is_rgb_profile(icc)
        self._size = (header.width, header.height)
        self._mode = ("L" if grey else "RGB") + ("A" if parsed.alpha is not None else "")
        found = {"icc_profile": icc, "exif": tags.exif, "xmp": tags.xmp, "dpi": tags.dpi}
        if header.rate is not None:
            found["quality"] = quality_of(header.rate)
        self.info |= {name: value for name, value in found.items() if value is not None}
        self._coded = (data, header.identity)

    def load(self) -> Any:
        """Decode the pixels, unless they are there already.

        Raises:
            OSError: if the file decodes to other symbols than were encoded, or its model is not
                here.
        """
        if self._coded is not None:
            data, identity = self._coded
            with _as_pillow_says_it():
                decoded = decoder_of(identity, None, None, MEMORY).decode(data)
            self.im = decoded.im
            self._mode = decoded.mode
            self._coded = None
            if self.fp is not None and self._exclusive_fp:
                self.fp.close()
            self.fp = None
        return super().load()


def _save(image: Image.Image, fp: IO[bytes], filename: str | bytes) -> None:
    options: dict[str, Any] = dict(getattr(image, "encoderinfo", {}))
    aim = {name: options.get(name) for name in _AIMS}
    tags = {name: options[name] for name in _TAGS if name in options}
    if isinstance(tags.get("exif"), Image.Exif):
        tags["exif"] = tags["exif"].tobytes()
    if unknown := sorted(options.keys() - {*_AIMS, *_OWN, *_TAGS}):
        warnings.warn(f"HPCM: passes over the options {', '.join(unknown)}", stacklevel=3)
    if tags:
        info, image = image.info | tags, image.copy()
        image.info = {name: value for name, value in info.items() if value is not None}
    with _as_pillow_says_it():
        own = {name: options[name] for name in _OWN if name in options}
        data = encoded(picture_of(image), Aim(**aim), **own)
    fp.write(data)


def _accept(prefix: bytes) -> bool:
    return prefix.startswith(container.MAGIC)


@contextmanager
def _as_pillow_says_it() -> Iterator[None]:
    """Turn this package's errors into those that users of Pillow catch."""
    try:
        yield
    except ConfigError as error:
        raise ValueError(str(error)) from None
    except HpcmError as error:
        raise OSError(f"HPCM: {error}") from None


Image.register_open(FORMAT, HpcmImageFile, _accept)
Image.register_save(FORMAT, _save)
Image.register_extension(FORMAT, EXTENSION)
Image.register_mime(FORMAT, MIME)
