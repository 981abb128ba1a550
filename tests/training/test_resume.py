"""Where a session starts, and which changes of a run's configuration it refuses."""

import json
import zlib
from pathlib import Path

import pytest

from hpcm_scale.config import RunConfig
from hpcm_scale.config.run import parse
from hpcm_scale.errors import CheckpointError, ConfigError, RunError
from hpcm_scale.models.zoo import chosen_model
from hpcm_scale.training import checkpoint, resume
from hpcm_scale.training.resume import ResumePoint, RunLock
from hpcm_scale.training.zero_layout import ZeroLayout

ZERO3 = ZeroLayout(3)


def config(out: Path, **changes) -> RunConfig:
    values = {
        "name": "small",
        "out": str(out),
        "steps": 9,
        "data": {"train": "shards", "streams": 4},
        "optimizer": {"lr": 1e-3, "grad_clip_norm": 0.5, "final_lr_fraction": 0.02},
        "guard": {"spike_factor": 3.0},
        "max_hours": 2.0,
    }
    return parse(RunConfig, values | changes, "test")


def resolve_resume(run: RunConfig, *how, model=None) -> ResumePoint:
    return resume.resolve_resume(run, model or chosen_model(run.model), *how, bf16=False)


def old_record(run: RunConfig) -> dict:
    """The configuration as version 0.1 wrote it: its names, and without what came later."""
    values = run.model_dump(mode="json")
    optimizer, guard = values["optimizer"], values["guard"]
    optimizer["clip"] = optimizer.pop("grad_clip_norm")
    optimizer["final"] = optimizer.pop("final_lr_fraction")
    guard["spike"] = guard.pop("spike_factor")
    values["hours"] = values.pop("max_hours")
    values["images"] = values.pop("crops")
    values.pop("trackers", None)
    return values


def started(run: RunConfig, record: dict | None = None) -> RunConfig:
    """A run with a run.json."""
    run.folder.mkdir(parents=True, exist_ok=True)
    record = run.model_dump(mode="json") if record is None else record
    (run.folder / "run.json").write_text(json.dumps({"name": run.name, "config": record}))
    return run


def saved(run: RunConfig, step: int, record: dict | None = None, **fields) -> Path:
    """A whole checkpoint of two ranks under ZeRO-3, with one file."""
    folder = checkpoint.folder_of(run.folder, step)
    folder.mkdir(parents=True)
    content = f"states of step {step}".encode()
    (folder / "states.pt").write_bytes(content)
    values = {
        "step": step,
        "world_size": 2,
        "stage": 3,
        "on_disk": False,
        "config": run.model_dump(mode="json") if record is None else record,
        "files": {"states.pt": {"bytes": len(content), "crc32": zlib.crc32(content)}},
    }
    checkpoint.complete(folder, values | fields)
    return folder


def test_auto_starts_a_run_that_is_not_there(tmp_path):
    start = resolve_resume(config(tmp_path), "auto", 2, ZERO3)
    assert start.checkpoint is None


def test_a_run_that_is_there_is_not_overwritten(tmp_path):
    run = started(config(tmp_path))
    with pytest.raises(RunError, match=r"already holds a run; continue it with --resume auto"):
        resolve_resume(run, "never", 2, ZERO3)


def test_auto_passes_over_damage_to_the_newest_good_one(tmp_path, caplog):
    run = started(config(tmp_path))
    good, bad = saved(run, 4), saved(run, 6)
    unfinished = checkpoint.folder_of(run.folder, 8)
    unfinished.mkdir()
    (bad / "states.pt").write_bytes(b"states of step 7")
    start = resolve_resume(run, "auto", 2, ZERO3)
    assert start.checkpoint is not None
    assert start.checkpoint.folder == good
    assert not start.universal
    assert [r.args[0] for r in caplog.records] == [unfinished, bad]
    (good / "states.pt").unlink()
    (bad / checkpoint.RECORD).write_text((good / checkpoint.RECORD).read_text())
    with pytest.raises(CheckpointError, match="every checkpoint is damaged"):
        resolve_resume(run, "auto", 2, ZERO3)


def test_other_ranks_or_stages_go_through_the_universal_form(tmp_path):
    run = started(config(tmp_path))
    saved(run, 4)
    for ranks, stage, universal in ((2, 3, False), (1, 3, True), (2, 1, True)):
        assert resolve_resume(run, "auto", ranks, ZeroLayout(stage)).universal is universal
    network = chosen_model(run.model)
    assert not resume.resolve_resume(run, network, "auto", 2, ZERO3, bf16=True).universal
    saved(run, 6, bf16=False)
    for bf16 in (False, True):
        start = resume.resolve_resume(run, network, "auto", 2, ZERO3, bf16=bf16)
        assert start.universal is bf16
    with pytest.raises(CheckpointError, match="is of ZeRO stage 3, which stage 0 cannot continue"):
        resolve_resume(run, "auto", 2, ZeroLayout(0))
    with pytest.raises(CheckpointError, match="its optimizer state was in memory"):
        resolve_resume(run, "auto", 2, ZeroLayout(3, optimizer_on="nvme"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 5}, "seed: was 0 when"),
        ({"batch": 16}, "batch: was 32 when"),
        ({"data": {"train": "shards", "streams": 8}}, "data.streams: was 4 when"),
        ({"model": {"width": 0.5}}, "model.width: was 1.0 when"),
    ],
)
def test_what_makes_the_losses_must_not_change(tmp_path, changes, said):
    run = started(config(tmp_path))
    saved(run, 4)
    with pytest.raises(ConfigError) as caught:
        resolve_resume(config(tmp_path, **changes), "auto", 2, ZERO3)
    assert str(caught.value).startswith(said)


def test_length_and_reporting_may_change(tmp_path):
    run = started(config(tmp_path))
    saved(run, 4)
    changed = config(tmp_path, steps=90, log_every=3, max_hours=1.0, data={
        "train": "elsewhere", "streams": 4, "workers": 2,
    })  # fmt: skip
    assert resolve_resume(changed, "auto", 2, ZERO3).checkpoint is not None


def test_a_run_of_version_0_1_is_resumed(tmp_path):
    run = config(tmp_path)
    started(run, old_record(run))
    folder = saved(run, 4, old_record(run))
    start = resolve_resume(run, "auto", 2, ZERO3)
    assert start.checkpoint is not None
    assert start.checkpoint.folder == folder
    clipped = config(tmp_path, optimizer={"lr": 1e-3, "grad_clip_norm": 2.0})
    with pytest.raises(ConfigError, match=r"optimizer.final_lr_fraction: was 0.02|grad_clip_norm"):
        resolve_resume(clipped, "auto", 2, ZERO3)
    # and another run branches off it
    branch = config(tmp_path, name="branch", optimizer={"lr": 2e-3})
    assert resolve_resume(branch, str(folder), 2, ZERO3).checkpoint is not None


def test_a_branch_keeps_the_network(tmp_path):
    folder = saved(started(config(tmp_path)), 4)
    branch = config(tmp_path, name="branch", model={"width": 0.5}, seed=9)
    with pytest.raises(ConfigError, match=r"model.width: was 1.0 when .*step-00000004 was saved"):
        resolve_resume(branch, str(folder), 2, ZERO3)


OFFICIAL = {"overrides": {"hyper_alignment": "official"}}


def test_a_branch_keeps_the_network_of_init(tmp_path):
    began = started(config(tmp_path, init="model.safetensors"))
    network = chosen_model(config(tmp_path, model=OFFICIAL).model)
    folder = saved(began, 4, network=network.model_dump(mode="json"))
    branch = config(tmp_path, name="branch")
    with pytest.raises(
        ConfigError, match=r"network's hyper_alignment was official when .* aligned"
    ):
        resolve_resume(branch, str(folder), 2, ZERO3)
    for fits in (
        config(tmp_path, name="branch", model=OFFICIAL),
        config(tmp_path, name="branch", init="moved.safetensors"),
    ):
        assert resolve_resume(fits, str(folder), 2, ZERO3, model=network).checkpoint is not None


def test_a_branch_of_an_older_checkpoint_reads_its_run(tmp_path):
    began = started(config(tmp_path, init="model.safetensors"))
    network = chosen_model(config(tmp_path, model=OFFICIAL).model)
    record = json.loads((began.folder / "run.json").read_text())
    record["model"] = network.model_dump(mode="json")
    (began.folder / "run.json").write_text(json.dumps(record))
    folder = saved(began, 4)
    with pytest.raises(ConfigError, match=r"hyper_alignment was official"):
        resolve_resume(config(tmp_path, name="branch"), str(folder), 2, ZERO3)


@pytest.mark.parametrize(
    ("optimizer", "said"),
    [
        ({"freeze": ["g_a"]}, r"optimizer.freeze: was empty when .*; export that run and start"),
        (
            {"parametrization": "mup", "base_width": 0.1},
            r"optimizer.parametrization: was standard when .* and is now mup",
        ),
        ({"lr_factors": {"g_s": 0.1}}, r"optimizer.lr_factors: was empty when .* now \{'g_s'"),
    ],
)
def test_a_branch_keeps_the_parameter_groups(tmp_path, optimizer, said):
    folder = saved(started(config(tmp_path)), 4)
    branch = config(tmp_path, name="branch", optimizer={"lr": 1e-4} | optimizer)
    with pytest.raises(ConfigError, match=said):
        resolve_resume(branch, str(folder), 2, ZERO3)


def test_a_folder_is_claimed_by_one_process(tmp_path):
    first, second = RunLock(tmp_path / "run"), RunLock(tmp_path / "run")
    first.acquire()
    with pytest.raises(RunError, match="another run is writing there"):
        second.acquire()
    first.release()
    second.acquire()
    second.release()
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be written"):
        RunLock(tmp_path / "file" / "run").acquire()
