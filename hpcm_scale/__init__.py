"""Train HPCM learned image codecs at any scale, fit their scaling laws, compress images.

The names below are imported when they are first used.

Compress a picture with a model that comes with the package, and get it back:

>>> import numpy as np
>>> from hpcm_scale import Codec, bundled_model
>>> codec = Codec.load(bundled_model("w0.125-0.013"))
>>> data = codec.encode(np.full((64, 64, 3), 128, np.uint8))
>>> codec.decode(data).size
(64, 64)

Build a network by its variant, scaled to a tenth of its width:

>>> from hpcm_scale import build, model_config
>>> network = build(model_config("base", width=0.1))
>>> network.config.latent_channels
32

Read a run's configuration with a field changed, and a model file:

>>> from hpcm_scale import load_model, load_run
>>> load_run("configs/runs/base.yaml", ["optimizer.lr=2e-4"]).optimizer.lr
0.0002
>>> load_model(bundled_model("w0.125-0.013")).info.config.name
'base-w0.125'

Fit laws to the records of runs:

>>> from hpcm_scale import fit_laws
>>> study = fit_laws(["configs/ladders/records/photos"])
>>> sorted(study.families[0].size_laws)
['bpp', 'loss', 'mse']
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpcm_scale.codec.codec import Codec
    from hpcm_scale.codec.image_io import read_image, write_image
    from hpcm_scale.config import load_run
    from hpcm_scale.config.variants import model_config
    from hpcm_scale.data.stream import TrainStream
    from hpcm_scale.models.zoo import build
    from hpcm_scale.scaling.study import fit_laws
    from hpcm_scale.weights.model_file import load_model
    from hpcm_scale.weights.stored_model import bundled_model

__version__ = "0.2.0"
__all__ = [
    "Codec",
    "TrainStream",
    "build",
    "bundled_model",
    "fit_laws",
    "load_model",
    "load_run",
    "model_config",
    "read_image",
    "write_image",
]

_HOMES = {
    "Codec": "codec.codec",
    "TrainStream": "data.stream",
    "build": "models.zoo",
    "bundled_model": "weights.stored_model",
    "fit_laws": "scaling.study",
    "load_model": "weights.model_file",
    "load_run": "config",
    "model_config": "config.variants",
    "read_image": "codec.image_io",
    "write_image": "codec.image_io",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
