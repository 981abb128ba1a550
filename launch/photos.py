"""Nine real photos from the scikit-image and scikit-learn packages into the folder it is given."""

import shutil
import sys
from importlib.resources import files
from pathlib import Path

from skimage import data
from sklearn import datasets

NAMES = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png")
NAMES += ("motorcycle_right.png", "rocket.jpg", "retina.jpg")

target = Path(sys.argv[1])
target.mkdir(parents=True, exist_ok=True)
photos = [files(data) / name for name in NAMES]
photos += [files(datasets) / "images" / name for name in ("china.jpg", "flower.jpg")]
for photo in photos:
    shutil.copy(photo, target)
