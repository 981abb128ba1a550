"""The bench of the codec: what it prints, and what it leaves running."""

import os
from pathlib import Path

import numpy as np
from PIL import Image
from typer.testing import CliRunner

from hpcm_scale.cli import app


def test_busy_processes_are_measured_beside_and_ended(tmp_path: Path):
    picture = tmp_path / "noise.png"
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(picture)
    options = ["--model", "w0.125-0.013", "--repeats", "1", "--busy", "2"]
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    before = children.read_text().split() if children.exists() else []
    result = CliRunner().invoke(app, ["bench", "codec", str(picture), *options])
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert "beside 2 busy processes" in said
    assert not children.exists() or children.read_text().split() == before
