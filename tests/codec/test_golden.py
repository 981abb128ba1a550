"""Files made once decode for ever, whatever the machine does differently."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from hpcm_scale.codec import container
from hpcm_scale.entropy.exact import narrow as narrow_module
from hpcm_scale.entropy.exact import neighbourhoods as neighbourhoods_module
from hpcm_scale.entropy.exact import product as product_module
from hpcm_scale.entropy.exact.parameters import ExactParameters
from tests.codec.conftest import synthesise_in_pieces
from tests.codec.golden.decode import HERE, MODELS, NAMES, decoded

EXPECTED = json.loads((HERE / "expected.json").read_text())


def _check(name: str) -> None:
    result = decoded(HERE / f"{MODELS[name]}.safetensors", (HERE / f"{name}.hpcm").read_bytes())
    assert {"symbols": result.symbols, "y_hat": result.y_hat} == EXPECTED[name]
    # g_s is in floating point: a pixel may be a level off.
    pixels = np.asarray(Image.open(HERE / f"{name}.png")).astype(int)
    assert np.abs(result.pixels - pixels).max() <= 1


@pytest.mark.parametrize("name", NAMES)
def test_golden_files_decode_to_their_symbols(name: str) -> None:
    header = container.read((HERE / f"{name}.hpcm").read_bytes()).header
    assert header.portable
    assert header.tiles == (3 if name == "tiled" else 1)
    _check(name)


@pytest.mark.parametrize("elements", [1, 5000, 1 << 30])
@pytest.mark.parametrize("in_bytes", [False, True])
def test_however_products_are_computed(
    in_bytes: bool, elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if in_bytes and not product_module.multiplies_bytes(torch.device("cpu")):
        pytest.skip("this processor does not multiply bytes exactly (no AVX-512 VNNI)")
    for module in (product_module, narrow_module):
        monkeypatch.setattr(module, "multiplies_bytes", lambda _: in_bytes)
    monkeypatch.setattr(product_module, "LEAST_CHANNELS", 1)
    monkeypatch.setattr(neighbourhoods_module, "ELEMENTS", elements)
    _check("whole")
    _check("narrow")


def test_in_whatever_layout_z_and_the_symbols_come(monkeypatch: pytest.MonkeyPatch) -> None:
    walk = ExactParameters.walk

    def transposed(self: ExactParameters, z_symbols: Tensor, code: Callable[..., Tensor]) -> Tensor:
        def relaid(*step: object) -> Tensor:
            return code(*step).transpose(2, 3).contiguous().transpose(2, 3)

        return walk(self, z_symbols.transpose(1, 3).contiguous().transpose(1, 3), relaid)

    monkeypatch.setattr(ExactParameters, "walk", transposed)
    for name in NAMES:
        _check(name)


def test_with_gs_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    synthesise_in_pieces(monkeypatch)
    for name in NAMES:
        _check(name)


SETTINGS = {
    "two threads": (2, {"MKL_CBWR": "COMPATIBLE"}),
    "plain loops": (1, {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "AVX2"}),
    "no VNNI": (2, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "ATEN_CPU_CAPABILITY": "avx2"}),
    "SSE4.1": (1, {"ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}),
}


def said_under(setting: str, module: str, *arguments: str) -> dict[str, Any]:
    """What a module says in a fresh process, given its threads and the arguments."""
    threads, variables = SETTINGS[setting]
    done = subprocess.run(
        [sys.executable, "-m", f"tests.codec.golden.{module}", str(threads), *arguments],
        cwd=HERE.parents[2],
        env=os.environ | {"OMP_NUM_THREADS": str(threads)} | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    said = json.loads(done.stdout)
    if "ONEDNN_MAX_CPU_ISA" in variables:
        assert not said["bytes"]
    return said


@pytest.mark.distributed
@pytest.mark.parametrize("setting", SETTINGS)
def test_in_a_fresh_process_under_other_settings(setting: str) -> None:
    said = said_under(setting, "decode")
    assert {name: said[name] for name in NAMES} == EXPECTED
