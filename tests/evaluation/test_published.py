"""The typed-in table against the development data and against the variants' configurations."""

import json
from pathlib import Path

import pytest

from hpcm_scale.errors import DataError
from hpcm_scale.evaluation.published import ablations, read_points, systems
from hpcm_scale.models.zoo import model_config
from hpcm_scale.weights.peers import PEERS


def test_every_figure_is_the_development_data_s(results: Path):
    table = json.loads((results / "published_table.json").read_text())
    rows = [
        {
            "model": system.model,
            "venue": system.venue,
            "enc_ms": system.encode_ms,
            "dec_ms": system.decode_ms,
            "kmacs_per_pixel": system.kmacs_per_pixel,
            "params_m": system.parameters_m,
        }
        | {f"bd_rate_{name}": value for name, value in system.bd_rate.items()}
        for system in systems()
    ]
    assert rows == table["rows"]
    effects = [row["bd_rate"] for row in table["ablations_hpcm_base_kodak"][1:]]
    assert list(ablations().values()) == effects


def test_the_variants_print_the_same_figures():
    built = [system for system in systems() if system.variant]
    own = {"charm", "dcvc-dc-intra", "base", "large", "1b"}
    assert {system.variant for system in built} == own | PEERS.keys()
    for system in built:
        published = model_config(system.variant).published
        assert published.kmacs_per_pixel == system.kmacs_per_pixel
        assert published.parameters_m == system.parameters_m
    for name in ablations():
        model_config(name)


def test_files_without_points_are_named(tmp_path: Path):
    path = tmp_path / "points.json"
    for content, words in (("{", "cannot be read"), ('{"a": 1}', "models"), ("[]", "points")):
        path.write_text(content)
        with pytest.raises(DataError, match=words):
            read_points(str(path))
    path.write_text('{"models": {"m": {"kodak": {"psnr": [[0.1], [30]]}}}}')
    with pytest.raises(DataError, match=r"points\.json:kodak say"):
        read_points(str(path))
    (curve,) = read_points(f"{path}:kodak")
    assert [list(x) for x in curve.of("psnr")] == [[0.1], [30]]
    assert len(curve.of("ms_ssim_db")[0]) == 0
