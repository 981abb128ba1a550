"""The papers' nine peers trained: ZeRO-3 with recomputation, resumed, exported, coded."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from hpcm_scale.codec.codec import Codec
from hpcm_scale.codec.images import picture_of
from hpcm_scale.data.stream import read_images
from hpcm_scale.training.export import export_run
from hpcm_scale.training.rendezvous import free_port
from hpcm_scale.weights.model_file import load_model
from hpcm_scale.weights.peers import PEERS
from tests.distributed.jobs import ROOT, environment

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

QUICK = ("elic", "mambavc")
"""Slices and a scan; the other variants are made of the same parts, or of windows."""
VARIANTS = [
    pytest.param(variant, marks=() if variant in QUICK else pytest.mark.long)
    for variant in sorted(variant for layout in PEERS.values() for variant in layout.variants)
]
STEPS = 6
RUN = f"""
name: narrow
seed: 3
model: {{width: 0.05}}
data: {{crop: 128, streams: 2, workers: 0, shuffle_buffer: 4}}
optimizer: {{lr: 1.0e-3, decay_fraction: 0}}
steps: {STEPS}
batch: 2
log_every: 1
precision: fp32
checkpoint: {{every: {STEPS // 2}}}
validate_every: {STEPS}
"""


@pytest.fixture(scope="session")
def trained(dataset: Path, request, tmp_path_factory) -> Path:
    """The folder of the runs of every variant that is tested, trained by peers_job.py."""
    out = tmp_path_factory.mktemp("peers")
    config = out / "run.yaml"
    config.write_text(RUN.replace("data: {", f"data: {{train: {dataset}, "))
    chosen = [
        item.callspec.params["variant"]
        for item in request.session.items
        if item.path == Path(__file__)
    ]
    for world in (1, 2):
        port = str(free_port())
        ranks = [
            subprocess.Popen(
                [
                    *(sys.executable, "tests/distributed/peers_job.py", str(config), str(out)),
                    *(str(rank), str(world), port, *dict.fromkeys(chosen)),
                ],
                cwd=ROOT,
                env=environment() | {"PYTHONPATH": str(ROOT)},
            )
            for rank in range(world)
        ]
        assert [process.wait(timeout=3000) for process in ranks] == [0] * world
    return out


def losses_of(run: Path) -> list[float]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [row["loss"] for row in lines if row["kind"] == "train"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_peer_trains_resumes_exports_and_codes(variant, trained: Path, dataset, tmp_path: Path):
    folder = trained / variant
    assert [path.read_text() for path in sorted(folder.glob("error-*.txt"))] == []
    losses, plain = losses_of(folder / "spread"), losses_of(folder / "plain")
    assert len(losses) == STEPS
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    assert losses[:3] == pytest.approx(plain[:3], rel=1e-5)
    # A latent whose last bit differs may round the other way, which later steps amplify.
    assert losses == pytest.approx(plain, rel=3e-2)
    assert losses_of(folder / "resumed") == losses

    for name in ("spread", "plain", "resumed"):
        export_run(folder / name, tmp_path / f"{name}.safetensors")
    first, second, third = (
        load_model(tmp_path / f"{name}.safetensors").network
        for name in ("spread", "plain", "resumed")
    )
    for ours, theirs in zip(first.parameters(), third.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    # Quantiles take steps of their own learning rate, however the run is spread.
    moved = first.z_prior.quantiles - torch.tensor([-10.0, 0.0, 10.0])
    assert moved.abs().mean() == pytest.approx(STEPS * 1e-3, rel=0.5)
    assert (first.z_prior.quantiles - second.z_prior.quantiles).abs().max() < 1e-3

    codec = Codec.load(tmp_path / "spread.safetensors", portable=False)
    picture = next(iter(read_images(str(dataset), "val"))).image.permute(1, 2, 0).numpy()
    encoded = codec.compress(picture_of(picture), estimate=True)
    assert codec.decompress(encoded.data).picture.pixels.shape == picture.shape
    # Six steps leave symbols at the estimate's floor, 30 bits each, where an escape costs less;
    # tests/codec/test_peers.py holds trained weights to both sides.
    assert 8 * encoded.payload_bytes <= 1.01 * encoded.estimated_bits + 64
