"""How the peers' part of the conformance kit was made: python -m tests.conformance.make_peers

As `tests.conformance.make`. Models are small by every means that leaves them models: a few
channels, weights of 7 bits, few coding tables, which a model file holds as it likes.
"""

import json
import lzma
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import numpy as np
import torch

from hpcm_scale.codec.codec import Codec
from hpcm_scale.conformance.kit import COMPRESSED, PEERS, model_file
from hpcm_scale.entropy import table_building
from hpcm_scale.entropy.exact.arithmetic import ORIGINAL, Arithmetic
from hpcm_scale.entropy.table_building import Kind
from hpcm_scale.weights.model_file import save_model
from tests.codec.conftest import photo
from tests.conformance.make import case_of, extreme, made, ordinary
from tests.entropy.peer_models import CONFIGS, of_rule

MODELS = CONFIGS | {
    "elic": {
        "latent_channels": 12,
        "hyper_channels": 3,
        "groups": [2, 2, 2, 2, 4],
        "width": 4,
        "depth": 1,
        "attention_depth": 1,
        "synthesis_widths": [5, 6],
        "context_widths": [5, 4],
    }
}
WIDE = frozenset({"mean_nets.1.0", "h_s.mean.0.0"})
ARITHMETIC = {
    **dict.fromkeys(("dcae", "lalic", "stf", "flic"), Arithmetic(2)),
    "tcm": Arithmetic(2, WIDE),
}
"""Of the models that are not of arithmetic 1."""
WEIGHT_STEPS = 64
"""The largest weight of a tensor is so many steps or more, less than twice as many."""
LARGEST_SCALE, SCALES = 6.0, 12
"""Of the tables of y."""
OFFSETS = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
"""Of FLIC's."""


FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lp": 1, "pb": 1}]
"""Of the compression: values have two bytes."""


def main() -> None:
    """Write what is lacking of models and files, and expected.json."""
    for part in ("models", "files"):
        (PEERS / part).mkdir(parents=True, exist_ok=True)
    expected = {}
    with TemporaryDirectory() as place:
        kit = Path(place)
        for part in ("models", "files"):
            (kit / part).mkdir()
        for variant in sorted(MODELS):
            packed = PEERS / "models" / f"{variant}.safetensors{COMPRESSED}"
            path = model_file(variant, kit)
            if packed.exists():
                path.write_bytes(lzma.decompress(packed.read_bytes()))
            else:
                _save(variant, path)
                packed.write_bytes(lzma.compress(path.read_bytes(), filters=FILTERS))
            for name, data in _files(variant, kit):
                file = PEERS / "files" / f"{name}.hpcm"
                if not file.exists():
                    file.write_bytes(data)
                (kit / "files" / file.name).write_bytes(file.read_bytes())
                expected[name] = case_of(name, variant, kit)
    text = json.dumps({"files": expected, "refused": {}}, indent=1)
    (PEERS / "expected.json").write_text(text + "\n")
    print(f"{len(expected)} files")


def _save(variant: str, path: Path) -> None:
    torch.manual_seed(0)  # for the density of z
    network = of_rule(variant, MODELS[variant])
    state = {name: _coarse(values) for name, values in network.state_dict().items()}
    with _few_tables():
        save_model(
            path,
            state,
            network.config,
            lmbda=0.013,
            half=True,
            arithmetic=ARITHMETIC.get(variant, ORIGINAL),
        )


def _coarse(values: torch.Tensor) -> torch.Tensor:
    """The nearest multiples of a step, a power of two."""
    _, exponent = math.frexp(float(values.abs().max()))
    step = math.ldexp(0.5 / WEIGHT_STEPS, exponent)
    return (values / step).round().mul(step).contiguous()


@contextmanager
def _few_tables() -> Iterator[None]:
    """Have models exported with few tables of y, none of them wide."""

    def few(kind: Kind) -> Kind:
        return replace(kind, largest=LARGEST_SCALE, count=SCALES)

    gaussian = table_building.gaussian
    with (
        mock.patch.object(table_building, "gaussian", lambda least: few(gaussian(least))),
        mock.patch.object(table_building, "GENERALIZED", few(table_building.GENERALIZED)),
        mock.patch.object(table_building, "OFFSETS", OFFSETS),
    ):
        yield


def _files(variant: str, kit: Path) -> Iterator[tuple[str, bytes]]:
    path = model_file(variant, kit)
    yield f"{variant}-45x70", Codec.load(path, engine="torch").encode(photo(45, 70, 1))
    yield f"{variant}-made", made(variant, (40, 60), ordinary, folder=kit)
    yield f"{variant}-extreme", made(variant, (50, 30), extreme, folder=kit)
    if variant == "weconvene":
        tiled = Codec.load(path, engine="torch", memory=1 << 16)
        yield f"{variant}-tiled", tiled.encode(photo(70, 530, 1))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
