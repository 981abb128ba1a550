"""The peers' exact paths give the same integers for ever, whatever the machine does differently."""

import json
from pathlib import Path

import pytest
import torch

from hpcm_scale.codec import container
from hpcm_scale.codec.codec import Codec
from hpcm_scale.entropy.exact import narrow as narrow_module
from hpcm_scale.entropy.exact import neighbourhoods as neighbourhoods_module
from hpcm_scale.entropy.exact import product as product_module
from hpcm_scale.weights.model_file import save_model
from tests.codec.conftest import photo
from tests.codec.golden.decode import HERE, decoded
from tests.codec.golden.peers import PEERS, digests
from tests.codec.test_golden import SETTINGS, said_under
from tests.entropy.divisions import NearestQuotients
from tests.entropy.peer_models import network

EXPECTED = json.loads((HERE / "peers.json").read_text())


@pytest.mark.parametrize("variant", PEERS)
def test_peers_hand_out_what_they_always_did(variant: str) -> None:
    with NearestQuotients():
        assert digests(variant) == EXPECTED[variant]


@pytest.mark.parametrize("elements", [1, 5000])
@pytest.mark.parametrize("in_bytes", [False, True])
def test_peers_do_however_products_are_computed(
    in_bytes: bool, elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if in_bytes and not product_module.multiplies_bytes(torch.device("cpu")):
        pytest.skip("this processor does not multiply bytes exactly (no AVX-512 VNNI)")
    for module in (product_module, narrow_module):
        monkeypatch.setattr(module, "multiplies_bytes", lambda _: in_bytes)
    monkeypatch.setattr(neighbourhoods_module, "ELEMENTS", elements)
    assert {variant: digests(variant) for variant in PEERS} == EXPECTED


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[Path, Path], list[int]]:
    """Models and files, one of each peer and WeConvene's in tiles, and what they decode to."""
    folder = tmp_path_factory.mktemp("peers")
    made = {}
    for variant in PEERS:
        model, file = folder / f"{variant}.safetensors", folder / f"{variant}.hpcm"
        of_rule = network(variant)
        state = {name: p.clone().contiguous() for name, p in of_rule.state_dict().items()}
        save_model(model, state, of_rule.config, lmbda=0.013)
        tiled = variant == "weconvene"
        codec = Codec.load(model, memory=1 << 16 if tiled else 2 << 30)
        data = codec.encode(photo(40, 600) if tiled else photo(120, 150))
        header = container.read(data).header
        assert header.portable
        assert (header.tiles > 1) == tiled
        assert len(data) > 500
        file.write_bytes(data)
        result = decoded(model, data)
        made[model, file] = [result.symbols, result.y_hat]
    return made


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("setting", SETTINGS)
def test_peers_in_a_fresh_process(setting: str, files: dict[tuple[Path, Path], list[int]]) -> None:
    said = said_under(setting, "peers", *(str(path) for pair in files for path in pair))
    assert said["peers"] == EXPECTED
    assert said["files"] == list(files.values())
