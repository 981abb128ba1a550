"""Exporting what DeepSpeed really saves, of every stage; its memory; its check and its faults."""

import json
import shutil
import subprocess
import sys
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from hpcm_scale.cli import app
from hpcm_scale.config import LossConfig
from hpcm_scale.errors import CheckpointError, RunError
from hpcm_scale.models.zoo import build, model_config
from hpcm_scale.training.export import export_run
from hpcm_scale.training.loss import RateDistortion
from hpcm_scale.training.rendezvous import free_port
from hpcm_scale.weights.model_file import load_model
from tests.training.deepspeed_run import KINDS, OVERRIDES, STEP, finish

ROOT = Path(__file__).parents[2]
CONFIG = model_config("base", overrides=OVERRIDES)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder of run folders, one of each kind."""
    folder = tmp_path_factory.mktemp("runs")
    port = str(free_port())
    program = [sys.executable, "-m", "tests.training.deepspeed_run", folder]
    ranks = [
        subprocess.Popen(
            [*program, str(rank), port], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for rank in range(2)
    ]
    outputs = [rank.communicate(timeout=600)[0].decode() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(outputs)
    pictures = folder / "pictures"
    pictures.mkdir()
    generator = np.random.default_rng(0)
    for i in range(2):
        pixels = generator.integers(0, 256, (70, 128, 3), np.uint8)
        Image.fromarray(pixels).save(pictures / f"{i}.png")
    for kind in KINDS:
        record = {
            "name": kind,
            "model": CONFIG.model_dump(mode="json"),
            "config": {
                "loss": {"lmbda": 0.013},
                "precision": "bf16" if kind.endswith("bf16") else "fp32",
                "data": {"train": str(folder / "none"), "val": str(pictures)},
            },
            "versions": {},
            "git_commit": None,
        }
        (folder / kind / "run.json").write_text(json.dumps(record))
        write_rows(folder / kind, validation_loss(folder / kind, pictures))
    return folder


def write_rows(run: Path, loss: float) -> None:
    """Metrics with that validation loss at the checkpoint, after an earlier one, then torn."""
    rows = [{"kind": "val", "step": step, "loss": loss / step * 2} for step in (1, 2)]
    text = "".join(json.dumps(row) + "\n" for row in rows) + '{"kind": "val", "st'
    (run / "metrics.jsonl").write_text(text)


def validation_loss(run: Path, pictures: Path) -> float:
    """Of the expected weights, by a loop of its own."""
    network = build(CONFIG)
    network.load_state_dict(torch.load(run / "expected.pt"))
    losses = []
    for path in sorted(pictures.iterdir()):
        x = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)[None] / 255
        padded = torch.nn.functional.pad(x, (0, 0, 0, -70 % 128), mode="replicate")
        with torch.no_grad():
            output = network.eval()(padded)
        output = output._replace(x_hat=output.x_hat[:, :, :70])
        losses.append(RateDistortion(LossConfig(lmbda=0.013)).per_image(output, x)[0, 0].item())
    return float(np.mean(losses))


@pytest.fixture
def run(made, tmp_path) -> Path:
    """A ZeRO-3 run of its own to spoil."""
    return Path(shutil.copytree(made / "stage-3", tmp_path / "run"))


def same(path: Path, expected: dict[str, torch.Tensor]) -> bool:
    state = load_model(path).network.state_dict()
    return state.keys() == expected.keys() and all(
        torch.equal(state[name], tensor.detach()) for name, tensor in expected.items()
    )


@pytest.mark.distributed
@pytest.mark.parametrize("kind", KINDS)
def test_every_stage_gives_the_weights_of_the_live_run(made, tmp_path, kind):
    done = export_run(made / kind, tmp_path / "model.safetensors")
    assert same(tmp_path / "model.safetensors", torch.load(made / kind / "expected.pt"))
    assert done.weights == "raw"
    assert done.check.startswith("validation loss")
    assert done.info.record["validation"]["step"] == 2
    assert done.info.record["checkpoint"] == STEP
    sharded = export_run(made / kind, tmp_path / "s" / "model.safetensors", shard_size=50_000)
    assert sharded.info.identity == done.info.identity
    assert same(sharded.info.path, torch.load(made / kind / "expected.pt"))


def add_average(run: Path, average: dict[str, torch.Tensor]) -> None:
    """Two ranks' files: stage-1-like pieces, cut wherever it falls, some parameters on one rank."""
    generator = np.random.default_rng(1)
    files = [({}, {}), ({}, {})]
    for name, tensor in average.items():
        flat = tensor.detach().flatten()
        cut = int(generator.integers(0, len(flat) + 1))
        for rank, start, stop in ((1, 0, cut), (0, cut, len(flat))):
            if start < stop:
                files[rank][0][name] = flat[start:stop].clone()
                files[rank][1][name] = start
    checkpoint = run / "checkpoints" / STEP
    for rank, (tensors, starts) in enumerate(files):
        metadata = {"starts": json.dumps(starts), "world": "2"}
        save_file(tensors, checkpoint / f"ema-{rank:05}.safetensors", metadata)
    finish(checkpoint, 3)


@pytest.mark.distributed
def test_the_moving_average_is_the_default(run, tmp_path):
    target = tmp_path / "model.safetensors"
    with pytest.raises(CheckpointError, match="holds no moving average; use --weights raw"):
        export_run(run, target, weights="ema")
    expected = torch.load(run / "expected.pt")
    average = {name: tensor * 1.25 for name, tensor in expected.items()}
    add_average(run, average)
    with pytest.raises(CheckpointError, match="validation loss is"):
        export_run(run, target)  # the recorded validation is of the other weights
    assert not target.exists()
    assert export_run(run, target, check=False).weights == "ema"
    assert same(target, average)
    with pytest.raises(CheckpointError, match="the run validated its moving average"):
        export_run(run, target, weights="raw")
    assert same(target, average)
    raw = export_run(run, target, weights="raw", check=False)
    assert same(target, expected)
    assert raw.check == "not checked"
    add_average(run, expected)
    assert "as in training" in export_run(run, target).check
    (run / "checkpoints" / STEP / "ema-00001.safetensors").unlink()
    finish(run / "checkpoints" / STEP, 3)
    with pytest.raises(CheckpointError, match="a file is missing"):
        export_run(run, target, check=False)


@pytest.mark.distributed
def test_a_model_of_another_loss_is_not_put_in_place(run, tmp_path, made):
    target = tmp_path / "model.safetensors"
    target.write_text("what was there")
    loss = validation_loss(run, made / "pictures")
    write_rows(run, loss * 1.001)
    with pytest.raises(CheckpointError) as caught:
        export_run(run, target)
    assert f"{loss:.6g}" in str(caught.value)
    assert f"{loss * 1.001:.6g}" in str(caught.value)
    assert target.read_text() == "what was there"
    write_rows(run, loss * 1.00001)
    assert "as in training" in export_run(run, target).check
    (run / "metrics.jsonl").write_text('{"kind": "val", "step": 1, "loss": 3}\n')
    with pytest.raises(CheckpointError, match=r"no validation at step 2 \(--no-check"):
        export_run(run, target)
    record = (run / "run.json").read_text()
    (run / "run.json").write_text(record.replace("pictures", "gone"))
    write_rows(run, loss)
    with pytest.raises(CheckpointError, match=r"cannot be checked.*--no-check writes it"):
        export_run(run, target)
    assert export_run(run, target, check=False).check == "not checked"


@pytest.mark.distributed
def test_the_command_says_what_it_wrote(run, tmp_path):
    target = tmp_path / "model.safetensors"
    arguments = ["export", str(run), str(target), "--checkpoint", STEP, "--shard-size", "50KB"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "model.safetensors.index.json and" in result.output
    assert "as in training" in result.output
    result = CliRunner().invoke(app, ["info", f"{target}.index.json"])
    assert result.exit_code == 0, result.output
    for arguments, message in (
        (["--checkpoint", "step-00000003"], "no such checkpoint"),
        (["--checkpoint", "../../x"], "no such checkpoint"),
        (["--weights", "best"], "neither ema nor raw"),
        (["--shard-size", "many"], "is not a size"),
    ):
        result = CliRunner().invoke(app, ["export", str(run), str(target), *arguments])
        assert message in str(result.exception)


@pytest.mark.distributed
def test_damaged_checkpoints_are_named(run, tmp_path):
    target = tmp_path / "model.safetensors"
    checkpoint = run / "checkpoints" / STEP
    states = checkpoint / "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    whole = states.read_bytes()
    middle = len(whole) // 2
    states.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    with pytest.raises(CheckpointError, match=f"{states.name} is not what was written"):
        export_run(run, target)
    states.write_bytes(whole[:middle])
    finish(checkpoint, 3)  # saved on a disk that lost its end: the sums fit
    with pytest.raises(CheckpointError, match=f"{states.name}: cannot be read"):
        export_run(run, target)
    states.unlink()
    finish(checkpoint, 3)
    with pytest.raises(CheckpointError, match=r"of ranks \[0\], was saved by 2"):
        export_run(run, target)
    (checkpoint / "checkpoint.json").unlink()
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        export_run(run, target)
    with pytest.raises(RunError, match=r"no run\.json"):
        export_run(tmp_path, target)
    assert not target.exists()


@pytest.mark.distributed
def test_swapped_weights_without_files_are_refused(run, tmp_path):
    """Offloaded to disks, they leave empty tensors in the states, as here."""
    checkpoint = run / "checkpoints" / STEP
    for rank in range(2):
        path = checkpoint / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        state = torch.load(path, weights_only=False)
        state["optimizer_state_dict"]["fp32_flat_groups"][0] = torch.empty(0)
        torch.save(state, path)
    finish(checkpoint, 3)
    with pytest.raises(CheckpointError, match=r"swapped-00000-00000\.safetensors: cannot be read"):
        export_run(run, tmp_path / "model.safetensors")
    add_average(run, torch.load(run / "expected.pt"))
    assert export_run(run, tmp_path / "model.safetensors").weights == "ema"


MEASURE = """
import sys, threading
from pathlib import Path
from hpcm_scale.training.export import export_run

def anonymous():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024

def sample():
    global peak
    while not done.wait(0.001):
        peak = max(peak, anonymous())

done, before = threading.Event(), anonymous()
peak = before
thread = threading.Thread(target=sample)
thread.start()
export_run(Path(sys.argv[1]), Path(sys.argv[2]), shard_size=int(sys.argv[3]), check=False)
done.set()
thread.join()
print(peak - before)
"""


def test_export_takes_the_memory_of_a_shard_not_of_the_model(tmp_path):
    """HPCM-Base, 274 MB, in the layout of ZeRO-3 over four ranks; its peak is that of /proc."""
    config = model_config("base")
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in build(config).state_dict().items()}
    ranks, shard = 4, 80_000_000
    share = sum(-(-prod(shape) // ranks) for shape in shapes.values())
    checkpoint = tmp_path / "run" / "checkpoints" / STEP
    checkpoint.mkdir(parents=True)
    for rank in range(ranks):
        generator = torch.Generator().manual_seed(rank)
        half = share // 2
        flats = [torch.rand(half, generator=generator), torch.rand(share - half)]
        state = {"partition_count": ranks, "zero_stage": 3, "fp32_flat_groups": flats}
        prefix = checkpoint / f"zero_pp_rank_{rank}_mp_rank_00_"
        torch.save({"optimizer_state_dict": state}, f"{prefix}optim_states.pt")
        torch.save({"module": {}, "param_shapes": [shapes]}, f"{prefix}model_states.pt")
    finish(checkpoint, 3)
    record = {
        "name": "large",
        "model": config.model_dump(mode="json"),
        "config": {"loss": {"lmbda": 0.013}},
        "versions": {},
        "git_commit": None,
    }
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    target = tmp_path / "model.safetensors"
    arguments = [sys.executable, "-c", MEASURE, tmp_path / "run", target, str(shard)]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=True)
    largest = max(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    assert largest < 1.01 * shard
    layer = 4 * max(map(prod, shapes.values()))
    assert int(done.stdout) < 1.3 * largest + layer
