"""Plans before a run starts, and plans for clusters that are not at hand."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from hpcm_scale.cli import app
from hpcm_scale.config import load_run
from hpcm_scale.data.pack import pack
from hpcm_scale.data.recipe import read_recipe
from hpcm_scale.errors import HpcmError, RunError
from hpcm_scale.models.complexity import count_flops
from hpcm_scale.models.zoo import model_config
from hpcm_scale.planning import launch_plan as planning
from hpcm_scale.planning.cluster_plan import Cluster, plan_cluster, step_traffic
from hpcm_scale.planning.launch_plan import launch_plan, optimal_interval
from hpcm_scale.planning.memory import GIB, ZeroLayout

SMALL = model_config("base", width=0.025)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Five pictures of 256², one of them for validation."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(5):
        noise = np.random.default_rng(i).integers(0, 256, (4, 4, 3), np.uint8)
        Image.fromarray(noise).resize((256, 256)).save(folder / f"{i}.png")
    (folder / "recipe.yaml").write_text("{licence: made here, min_side: 256, val: {names: ['0']}}")
    pack(str(folder), folder / "shards", read_recipe(folder / "recipe.yaml"))
    return folder / "shards"


def run(tmp_path, dataset, *changes):
    path = tmp_path / "run.yaml"
    path.write_text(
        "{name: small, images: 90, batch: 4, model: {variant: base, width: 0.025}, "
        "data: {streams: 4, workers: 0, shuffle_buffer: 4}}"
    )
    return load_run(path, [f"data.train={dataset}", f"out={tmp_path}/runs", *changes])


def test_a_plan_adds_up(tmp_path, dataset):
    plan = launch_plan(run(tmp_path, dataset, "micro_batch=1"), world_size=2)
    assert plan.ranks * plan.micro_batch * plan.accumulation == plan.run.batch
    assert plan.steps == math.ceil(90 / 4)
    assert plan.samples == 4
    assert plan.epochs == pytest.approx(plan.steps * 4 / 4)
    assert plan.parameters["total"] == sum(plan.parameters.values()) / 2
    assert plan.flops_per_image == count_flops(SMALL).train
    # fp32 weights and Adam's two averages of each
    assert plan.checkpoint_bytes == 12 * plan.parameters["total"]
    console = Console(record=True, width=120)
    console.print(plan)
    text = console.export_text()
    for words in ("4 = 2 ranks × 1 crops × 2 accumulated", "23 steps", "recomputed", "kept"):
        assert words in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["data.train=/nowhere"], "/nowhere"),
        (["data.val=/nowhere"], "/nowhere"),
        (["data.crop=200"], "data.crop: 200 is not a multiple of"),
        (["data.crop=512"], "512"),
        (["batch=3"], "batch: 3 cannot be shared by 2 ranks"),
        (["micro_batch=3"], "micro_batch: 3 does not divide"),
        (["data.streams=3"], "data.streams"),
        (["deepspeed=zero9"], "deepspeed"),
    ],
)
def test_what_cannot_start_is_refused_in_one_line(tmp_path, dataset, changes, message):
    with pytest.raises(HpcmError) as caught:
        launch_plan(run(tmp_path, dataset, *changes), world_size=2)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_too_little_memory_or_disk_is_refused_with_the_remedy(tmp_path, dataset, monkeypatch):
    fits = launch_plan(run(tmp_path, dataset), world_size=1)
    monkeypatch.setattr(planning, "available_memory", lambda: int(fits.rank_bytes) + 1)
    launch_plan(run(tmp_path, dataset), world_size=1)
    with pytest.raises(RunError, match=r"set checkpoint_activations: true"):
        launch_plan(run(tmp_path, dataset, "checkpoint_activations=false"), world_size=1)
    monkeypatch.setattr(planning, "available_memory", lambda: int(fits.rank_bytes) - 1)
    with pytest.raises(RunError, match=r"memory: a rank needs .* has .*; lower micro_batch"):
        launch_plan(run(tmp_path, dataset), world_size=1)
    monkeypatch.undo()
    kept = fits.checkpoints * fits.checkpoint_bytes
    monkeypatch.setattr(planning.shutil, "disk_usage", lambda _: SimpleNamespace(free=kept - 1))
    with pytest.raises(RunError, match=r"out: .* lower checkpoint.keep"):
        launch_plan(run(tmp_path, dataset), world_size=1)


def test_the_traffic_of_a_step_is_the_zero_papers():
    """arXiv 1910.02054, section 7: 2Ψ for plain data parallelism, ZeRO-1 and 2; 3Ψ for ZeRO-3."""
    count, ranks = 10**6, 10**9  # so many ranks that (ranks - 1) / ranks is 1
    sent = [step_traffic(ZeroLayout(stage), count, ranks, 1) / (2 * count) for stage in range(4)]
    assert sent == pytest.approx([2, 2, 2, 3])
    assert step_traffic(ZeroLayout(3), count, 1, 4) == 0


@pytest.mark.slow
def test_the_recommendation_fits_and_is_the_fastest_that_does():
    cluster = Cluster(hosts=2, accelerators=2, memory=80 * GIB)
    roomy = plan_cluster(SMALL, cluster, batch=32)
    assert all(option.problem is None for option in roomy.options)
    assert roomy.best.seconds == min(option.seconds for option in roomy.options)
    assert not roomy.best.checkpointing

    # What is left beside the framework holds activations of a crop, not of eight.
    need = sorted(option.memory.device for option in roomy.options)
    tight = plan_cluster(SMALL, Cluster(hosts=2, accelerators=2, memory=need[2]), batch=32)
    assert tight.best.memory.device <= need[2]
    small = plan_cluster(SMALL, Cluster(hosts=2, accelerators=2, memory=GIB), batch=32)
    with pytest.raises(RunError, match=r"base-w0.025 does not fit in 1.00 GiB .* take more"):
        _ = small.best


def test_no_other_interval_between_checkpoints_loses_less():
    write, between = 30.0, 86400.0

    def lost(interval: float) -> float:
        return write / interval + interval / (2 * between)

    best = optimal_interval(write, between)
    assert lost(best) < min(lost(best * 0.9), lost(best * 1.1))


def test_the_verb_recommends_and_fails_where_none_fits():
    small = ["plan", "--model", "base", "--width", "0.025", "--hosts", "2", "--accelerators", "2"]
    done = CliRunner().invoke(app, [*small, "--memory", "16GiB"])
    assert done.exit_code == 0, done.output
    assert "fastest that fits: deepspeed: " in done.output
    failed = CliRunner().invoke(app, [*small, "--memory", "1GiB"])
    assert isinstance(failed.exception, RunError)
    wrong = CliRunner().invoke(app, [*small, "--memory", "80 apples"])
    assert "80 apples" in str(wrong.exception)


@pytest.mark.slow
@pytest.mark.long
def test_the_page_on_larger_clusters_is_what_plan_computes():
    """After a change: `hpcm-scale plan --model 1b --h100-report > .../H100_ESTIMATES.md`."""
    done = CliRunner().invoke(app, ["plan", "--model", "1b", "--h100-report"])
    assert done.exit_code == 0, done.output
    assert done.output == (Path(planning.__file__).parent / "H100_ESTIMATES.md").read_text()
