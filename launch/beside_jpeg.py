"""A photo, its .hpcm file and a JPEG of as many bytes, in a row: PHOTO FILE.hpcm DECODED OUT."""

import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from hpcm_scale.codec.images import read_picture
from hpcm_scale.evaluation.codecs import PILLOW
from hpcm_scale.evaluation.compare import side_by_side
from hpcm_scale.evaluation.comparison_page import nearest_in_size
from hpcm_scale.units import psnr_of

photo, coded, decoded, out = map(Path, sys.argv[1:5])
original, ours = (read_picture(path).pixels for path in (photo, decoded))
jpeg = nearest_in_size(PILLOW["jpeg"], original, coded.stat().st_size)
theirs = np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))
captions = [photo.name]
for name, size, pixels in (
    ("hpcm_scale", coded.stat().st_size, ours),
    ("JPEG", len(jpeg), theirs),
):
    captions.append(f"{name}  {size} bytes  {psnr_of(original, pixels):.1f} dB")
    sys.stdout.write(f"{captions[-1]}\n")
pictures = [Image.fromarray(pixels) for pixels in (original, ours, theirs)]
side_by_side(pictures, captions).save(out)
