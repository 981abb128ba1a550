"""The nine peers through the launcher: ZeRO-3 with recomputation, resumed, exported, coded."""

from pathlib import Path

import numpy as np
import pytest
import torch

from hpcm_scale.codec.codec import Codec
from hpcm_scale.codec.images import picture_of
from hpcm_scale.data.stream import read_images
from hpcm_scale.training.export import export_run
from hpcm_scale.weights.model_file import load_model
from hpcm_scale.weights.peers import PEERS
from tests.distributed.jobs import launch, rows

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

VARIANTS = sorted(variant for layout in PEERS.values() for variant in layout.variants)
STEPS = 20


def changes(variant: str, *more: str) -> list[str]:
    """Of the small run, to train a narrow network of a variant."""
    return [
        f"model.variant={variant}",
        "model.width=0.05",
        f"steps={STEPS}",
        "batch=2",
        "data.crop=128",
        "optimizer.decay_fraction=0",
        f"checkpoint.every={STEPS // 2}",
        f"validate_every={STEPS}",
        *more,
    ]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_peer_trains_resumes_exports_and_codes(variant, dataset, tmp_path: Path):
    def run(name: str, ranks: int, *more: str, resume: str = "never") -> list[float]:
        done = launch(tmp_path / name, dataset, ranks, *changes(variant, *more), resume=resume)
        assert done.returncode == 0, done.stdout + done.stderr
        return [row["loss"] for row in rows(tmp_path / name, "train")]

    spread = ("deepspeed=zero3", "checkpoint_activations=true")
    losses = run("zero3", 2, *spread)
    assert len(losses) == STEPS
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    plain = run("zero0", 1, "deepspeed=zero0", "checkpoint_activations=false")
    assert losses[: STEPS // 2] == pytest.approx(plain[: STEPS // 2], rel=1e-4)
    # A latent whose last bit differs may round the other way, which later steps amplify.
    assert losses == pytest.approx(plain, rel=1e-2)

    assert run("resumed", 2, *spread, f"steps={STEPS // 2}") == losses[: STEPS // 2]
    assert run("resumed", 2, *spread, resume="auto") == losses

    for name in ("zero3", "zero0", "resumed"):
        export_run(tmp_path / name / "small", tmp_path / f"{name}.safetensors")
    first, second, third = (
        load_model(tmp_path / f"{name}.safetensors").network
        for name in ("zero3", "zero0", "resumed")
    )
    for ours, theirs in zip(first.parameters(), third.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    # Quantiles take steps of their own learning rate, however the run is spread.
    moved = first.z_prior.quantiles - torch.tensor([-10.0, 0.0, 10.0])
    assert moved.abs().mean() == pytest.approx(STEPS * 1e-3, rel=0.5)
    assert (first.z_prior.quantiles - second.z_prior.quantiles).abs().max() < 1e-3

    codec = Codec.load(tmp_path / "zero3.safetensors", portable=False)
    picture = next(iter(read_images(str(dataset), "val"))).image.permute(1, 2, 0).numpy()
    encoded = codec.compress(picture_of(picture), estimate=True)
    assert codec.decompress(encoded.data).picture.pixels.shape == picture.shape
    assert 8 * encoded.payload_bytes == pytest.approx(encoded.estimated_bits, rel=0.01, abs=64)
