"""The records of the study in configs/ladders/records give the figures of STUDIES.md, untrained."""

import json
import re
from pathlib import Path

from typer.testing import CliRunner

from hpcm_scale.cli import app

ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "configs" / "ladders" / "records" / "photos"
SIZES = re.compile(r"w0\.(05|075|1|125|175|25)-s\d")


def test_the_page_says_what_the_fit_of_the_records_says(tmp_path):
    runs = [str(path) for path in sorted(RECORDS.iterdir()) if SIZES.fullmatch(path.name)]
    done = CliRunner().invoke(app, ["fit", *runs, "-o", str(tmp_path)])
    assert done.exit_code == 0, done.output
    (family,) = json.loads((tmp_path / "law.json").read_text())["families"]
    law = family["size_laws"]["loss"]["variable_projection"]["parameters"]
    text = (ROOT / "configs" / "ladders" / "STUDIES.md").read_text()
    assert f"loss = {law['A']:.1f}·N^-{law['alpha']:.3f}" in text
    said = " ".join(done.output.split())
    predicted, low, high, measured = re.search(
        r"loss\(N\) held out: .*?others, (\S+) \((\S+) … (\S+)\); measured (\S+),", said
    ).groups()
    assert f"{predicted} ({low} to {high}); measured {measured}" in text
