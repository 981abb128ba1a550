"""What the package and its program offer at the front: names, extras, help, configuration."""

import doctest
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import hpcm_scale
from hpcm_scale.cli import app

ROOT = Path(__file__).parents[2]
BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocked())
from hpcm_scale.cli import main
sys.argv = ["hpcm-scale", *{arguments!r}]
main()
"""
BEYOND_BASE = {
    "deepspeed", "webdataset", "tensorboard", "accelerate", "pytorch_msssim", "pillow_jxl",
}  # fmt: skip


def program(*arguments: str, blocked: set[str] = frozenset()) -> subprocess.CompletedProcess:
    code = BLOCKED.format(blocked=blocked, arguments=list(arguments))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=ROOT
    )


def test_the_examples_of_the_front_page_hold(monkeypatch):
    monkeypatch.chdir(ROOT)
    failed, tried = doctest.testmod(hpcm_scale)
    assert tried >= 8
    assert failed == 0


def test_every_name_is_there_and_torch_is_not_loaded_for_it():
    code = "import sys, hpcm_scale; assert 'torch' not in sys.modules; print(dir(hpcm_scale))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    for name in hpcm_scale.__all__:
        assert callable(getattr(hpcm_scale, name))
    with pytest.raises(AttributeError, match="no attribute 'Codex'"):
        _ = hpcm_scale.Codex


def test_the_base_install_codes_and_fits(tmp_path):
    from PIL import Image

    Image.effect_noise((64, 64), 50).convert("RGB").save(tmp_path / "a.png")
    photo, coded, back = (str(tmp_path / name) for name in ("a.png", "a.hpcm", "b.png"))
    records = "configs/ladders/records/photos"
    for arguments in (
        ("encode", photo, "-o", coded),
        ("decode", coded, "-o", back),
        ("fit", f"{records}/w0.1-s1", f"{records}/w0.125-s1", "-o", str(tmp_path / "report")),
        ("info", "base"),
    ):
        done = program(*arguments, blocked=BEYOND_BASE)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (("train", "configs/runs/quickstart.yaml", "-n", "1"), "train"),
        (("eval", "w0.125-0.013", "--data", ".github", "-o", "/tmp/never"), "eval"),
    ],
)
def test_a_missing_extra_is_named_in_one_line(arguments, extra):
    done = program(*arguments, blocked=BEYOND_BASE)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert f"pip install 'hpcm-scale[{extra}]'" in done.stderr


def test_python_m_is_the_program():
    done = subprocess.run(
        [sys.executable, "-m", "hpcm_scale", "--version"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.stdout.strip() == hpcm_scale.__version__


def test_config_shows_what_differs_and_all_of_it():
    run = str(ROOT / "configs/runs/quickstart.yaml")
    short = CliRunner().invoke(app, ["config", run, "--set", "optimizer.lr=0.5"])
    assert short.exit_code == 0
    assert "optimizer.lr = 0.5  (default: 0.0001)" in short.output
    assert "Peak learning rate." in short.output
    assert "optimizer.betas" not in short.output
    whole = CliRunner().invoke(app, ["config", run, "--all"])
    assert "optimizer.betas = [0.9, 0.999]" in whole.output
    assert len(whole.output) > 2 * len(short.output)


def test_every_field_of_a_run_is_explained():
    from hpcm_scale.cli.config import fields
    from hpcm_scale.config import RunConfig

    unexplained = [name for name, _, meaning in fields(RunConfig) if len(meaning) < 4]
    assert not unexplained


def test_the_page_of_fields_is_what_the_code_says():
    """After a change: `hpcm-scale config --markdown > hpcm_scale/config/FIELDS.md`."""
    done = CliRunner().invoke(app, ["config", "--markdown"])
    assert done.output == (ROOT / "hpcm_scale" / "config" / "FIELDS.md").read_text()


def test_the_readme_is_short_and_its_links_lead_somewhere():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) < 150
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    assert len(links) > 15
    assert not [link for link in links if not (ROOT / link).exists()]


@pytest.mark.parametrize("verb", ["encode", "decode", "eval", "plan", "train", "fit", "doctor"])
def test_help_fits_eighty_columns(verb):
    done = CliRunner().invoke(app, [verb, "--help"], env={"COLUMNS": "80", "TERM": "dumb"})
    assert done.exit_code == 0
    assert max(map(len, done.output.splitlines())) <= 80
