"""`hpcm-scale eval` and `table`: real bytes, whole runs, faults."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hpcm_scale.codec.codec import Codec
from hpcm_scale.evaluation.evaluate import ResultLog
from hpcm_scale.units import psnr_of
from tests.evaluation.conftest import Run

BASIC = ("--threads", 1, "--page", 0)


def rows_of(folder: Path) -> dict[tuple[str, str, str], dict]:
    lines = (folder / "results.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert len({row["key"] for row in rows}) == len(rows)
    return {(row["curve"], row["setting"], row["image"]): row for row in rows}


def test_an_evaluation_is_of_real_files(
    run: Run, models: list[Path], pictures: Path, tmp_path: Path
):
    out = tmp_path / "report"
    code, said, error = run(
        "eval", *models, "--data", pictures, "-o", out, "--codecs", "jpeg,webp", *BASIC
    )
    assert code == 0, error
    rows = rows_of(out)
    assert len(rows) == 2 * (2 + 8 + 8)
    # The model's figures by hand.
    codec = Codec.load(models[1])
    pixels = np.asarray(Image.open(pictures / "1.png"))
    data = codec.encode(pixels)
    decoded = np.asarray(codec.decode(data))
    row = rows["HPCM tiny", "0.05", "1.png"]
    assert row["bytes"] == len(data)
    assert row["bpp"] == 8 * len(data) / (176 * 192)
    assert row["psnr"] == psnr_of(pixels, decoded)
    assert row["encode_seconds"] > 0
    assert row["peak_mib"] is None or row["peak_mib"] > 50
    # The averages are means, in every file that has them.
    report = json.loads((out / "report.json").read_text())
    curves = {curve["name"]: curve["points"] for curve in report["curves"]}
    assert [point["setting"] for point in curves["HPCM tiny"]] == ["0.013", "0.05"]
    (point,) = (p for p in curves["jpeg"] if p["setting"] == "50")
    mean = np.mean([rows["jpeg", "50", name]["psnr"] for name in ("0.png", "1.png")])
    assert point["psnr"] == pytest.approx(mean)
    averages = list(csv.DictReader((out / "averages.csv").open()))
    (average,) = (a for a in averages if (a["curve"], a["setting"]) == ("jpeg", "50"))
    assert float(average["psnr"]) == pytest.approx(mean)
    assert len(list(csv.DictReader((out / "images.csv").open()))) == len(rows)
    deltas = {(d["curve"], d["metric"], d["method"]): d for d in report["deltas"]}
    assert deltas["webp", "psnr", "pchip"]["bd_rate"] < 0
    low, high = deltas["webp", "psnr", "pchip"]["interval"]
    assert low < deltas["webp", "psnr", "pchip"]["bd_rate"] < high
    assert "95 % bootstrap intervals over pictures" in said
    assert report["anchor"] == "jpeg"
    for name in ("rd-psnr", "rd-ms-ssim"):
        assert Image.open(out / f"{name}.png").size == (1080, 750)
        assert "HPCM tiny" in (out / f"{name}.svg").read_text()
    assert "MEASURED" in said
    # And the table shows them again, told apart from what is published.
    code, said, _ = run("table", "--results", out)
    assert code == 0
    assert said.index("PUBLISHED") < said.index("COUNTED") < said.index("MEASURED")
    assert f"{point['bpp']:.4f}" in said
    assert "HPCM-1B" in said
    assert "1000.328" in said  # counted
    assert "1002.00" in said  # printed


def test_what_was_done_is_not_done_again(run: Run, models: list[Path], pictures: Path, tmp_path):
    """The file of a killed process: some rows are missing, one is cut in the middle."""
    arguments = ("eval", models[0], "--data", pictures, "-o", tmp_path, "--codecs", "jpeg", *BASIC)
    assert run(*arguments)[0] == 0
    log = tmp_path / "results.jsonl"
    before = log.read_bytes()
    lines = before.splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:4]) + lines[4][:50])
    assert run(*arguments)[0] == 0
    kept = log.read_bytes().splitlines(keepends=True)
    assert kept[:4] == lines[:4]  # times and all
    assert kept[4] == lines[4][:50] + b"\n"
    assert len(kept) == len(lines) + 1
    report = json.loads((tmp_path / "report.json").read_text())
    assert sum(point["images"] for curve in report["curves"] for point in curve["points"]) == 18
    # Another picture under the same name is another picture.
    Image.open(pictures / "0.png").rotate(180).save(pictures / "0.png")
    assert run(*arguments)[0] == 0
    assert len(log.read_bytes().splitlines()) == len(kept) + 9
    # So are other threads: times would not compare.
    assert run(*arguments[:-4], "--threads", 2, "--page", 0)[0] == 0
    assert len(log.read_bytes().splitlines()) == len(kept) + 9 + 18


def test_a_failing_picture_is_told_and_the_rest_is_done(
    run: Run, models: list[Path], pictures: Path, tmp_path: Path
):
    whole = (pictures / "0.png").read_bytes()
    (pictures / "bad.png").write_bytes(whole[: len(whole) // 2])
    out = tmp_path / "report"
    arguments = ("eval", models[0], "--data", pictures, "-o", out, "--codecs", "jpeg", *BASIC)
    code, _, error = run(*arguments)
    assert code == 2
    assert error.count("bad.png: is a damaged image") == 1
    assert "9 of 27 codings failed; averages are over the 2 of 3 pictures" in error
    report = json.loads((out / "report.json").read_text())
    assert report["images"] == ["0.png", "1.png"]
    assert {failure["image"] for failure in report["failures"]} == {"bad.png"}
    # Put right, it alone is coded.
    (pictures / "bad.png").write_bytes(whole)
    assert run(*arguments)[0] == 0
    assert json.loads((out / "report.json").read_text())["failures"] == []


def test_a_codec_that_always_fails_is_dropped_alone(
    run: Run, models: list[Path], pictures: Path, tmp_path: Path
):
    codec = "name=broken; quality=1; encode=false {input} {output}; decode=false {input} {output}"
    code, _, error = run(
        "eval", models[0], "--data", pictures, "-o", tmp_path, "--codec", codec, *BASIC
    )
    assert code == 2
    assert "dropped: broken 1" in error
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["dropped"] == ["broken 1"]
    assert [curve["name"] for curve in report["curves"]] == ["HPCM tiny"]
    assert report["images"] == ["0.png", "1.png"]


def test_published_points_stand_beside_the_measured(run: Run, pictures: Path, tmp_path: Path):
    """A file of points with half of JPEG's rates, in CompressAI's format."""
    out, points = tmp_path / "report", tmp_path / "half.json"
    arguments = ("eval", "--data", pictures, "-o", out, "--codecs", "jpeg", *BASIC)
    assert run(*arguments)[0] == 0
    jpeg = json.loads((out / "report.json").read_text())["curves"][0]["points"]
    half = {"bpp": [p["bpp"] / 2 for p in jpeg], "psnr-rgb": [p["psnr"] for p in jpeg]}
    points.write_text(json.dumps({"name": "half", "results": half}))
    assert run(*arguments, "--points", points)[0] == 0
    report = json.loads((out / "report.json").read_text())
    assert [d["curve"] for d in report["deltas"]] == ["half (published)"] * 3
    assert all(d["bd_rate"] == pytest.approx(-50) for d in report["deltas"])
    assert "half (published)" in (out / "rd-psnr.svg").read_text()
    assert "half" not in (out / "averages.csv").read_text()
    code, _, error = run(*arguments, "--points", points, "--anchor", "half")
    assert code == 2
    assert "'half' is not one of jpeg, half (published)" in error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "nowhere", "--codecs", "jpeg"], "nowhere is not a folder"),
        (["--data", "."], "name a model file, --codecs or --codec"),
        (["absent.safetensors", "--data", "."], "absent.safetensors"),
        (["--data", ".", "--codecs", "gif"], "'gif' is not one of"),
        (["--data", ".", "--codecs", "jpeg", "--points", "none.json"], "none.json cannot be read"),
    ],
)
def test_wrong_arguments_are_one_line(
    run: Run, pictures: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
):
    monkeypatch.chdir(pictures)
    monkeypatch.delenv("HPCM_MODELS", raising=False)
    code, _, error = run("eval", *arguments)
    assert code == 2
    assert words in error
    assert error.count("\n") == 1
    assert not (pictures / "report").exists()


def test_many_writers_leave_whole_lines(tmp_path: Path):
    """Processes that append at once: every row is there, none is torn."""
    path = tmp_path / "results.jsonl"

    def write(writer: int) -> None:
        log = ResultLog(path)
        for i in range(50):
            log.append({"key": f"{writer}-{i}", "text": "x" * 5000})

    writers = [get_context("fork").Process(target=write, args=(k,)) for k in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    rows = ResultLog(path).read()
    assert set(rows) == {f"{k}-{i}" for k in range(3) for i in range(50)}
    assert len(path.read_text().splitlines()) == 150


@pytest.mark.distributed
@pytest.mark.slow
def test_two_processes_give_the_figures_of_one(
    run: Run, models: list[Path], pictures: Path, tmp_path: Path
):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    # Encoders that choose as this process's does: see conftest.py.
    environment["ONEDNN_MAX_CPU_ISA"] = "AVX2"
    arguments = ["eval", *map(str, models), "--data", str(pictures), "--codecs", "jpeg,avif"]
    arguments += ["--threads", "1", "--page", "0"]
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    assert run(*arguments, "-o", alone)[0] == 0

    log = shared / "results.jsonl"
    program = ["-m", "hpcm_scale.cli", *arguments, "-o", str(shared)]
    killed = subprocess.Popen([sys.executable, *program], env=environment)
    while killed.poll() is None and not (log.is_file() and log.read_bytes().count(b"\n") >= 3):
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    begun = log.read_bytes()
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    launcher += ["--num_processes", "2", "--num_machines", "1", "--main_process_port", "0"]
    done = subprocess.run([*launcher, *program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert log.read_bytes().startswith(begun)
    one, two = rows_of(alone), rows_of(shared)
    assert one.keys() == two.keys()
    for name, row in one.items():
        for figure in ("key", "bytes", "psnr", "ms_ssim"):
            assert row[figure] == two[name][figure], name
    assert any("processes: 2" in row["machine"] for row in two.values())
    assert done.stdout.count("MEASURED") == 1
