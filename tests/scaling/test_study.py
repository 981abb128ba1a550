"""The records of the study in configs/ladders/records give the figures of STUDIES.md, untrained."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from hpcm_scale.cli import app
from hpcm_scale.models.complexity import count_flops
from hpcm_scale.models.zoo import model_config
from hpcm_scale.runs.metrics_log import MetricsLog
from hpcm_scale.runs.records import read_run, read_runs
from hpcm_scale.scaling.sweeps import tuned_runs

ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "configs" / "ladders" / "records" / "photos"
PRINCIPAL = RECORDS.parent / "principal"
STUDY = ROOT / "configs" / "ladders" / "STUDIES.md"
SIZES = re.compile(r"w0\.(05|075|1|125|175|25|3)-s\d")


def _fitted(records: Path, out: Path) -> tuple[dict, str, tuple[str, ...]]:
    """The law of size of a ladder's records, what was said, and the largest size held out."""
    runs = [str(path) for path in sorted(records.iterdir()) if SIZES.fullmatch(path.name)]
    done = CliRunner().invoke(app, ["fit", *runs, "-o", str(out)])
    assert done.exit_code == 0, done.output
    (family,) = json.loads((out / "law.json").read_text())["families"]
    said = " ".join(done.output.split())
    held_out = re.search(
        r"loss\(N\) held out: .*?others, (\S+) \((\S+) … (\S+)\); measured (\S+),", said
    ).groups()
    return family["size_laws"]["loss"]["variable_projection"], said, held_out


def test_the_page_says_what_the_fit_of_the_records_says(tmp_path):
    law, _, (predicted, low, high, measured) = _fitted(RECORDS, tmp_path)
    text = STUDY.read_text()
    found = law["parameters"]
    assert f"loss = {found['A']:.1f}·N^-{found['alpha']:.3f}" in text
    assert f"{predicted} ({low} to {high}); measured {measured}" in text


def test_the_second_ladder_s_law_is_the_page_s(tmp_path):
    law, said, (predicted, low, high, measured) = _fitted(PRINCIPAL, tmp_path)
    text = " ".join(STUDY.read_text().split())
    found, intervals = law["parameters"], law["profile_intervals"]
    assert "12 runs, 7 sizes (1.79e+05 to 6.198e+06)" in said
    assert f"loss = {found['E']:.3f} + {found['A']:.1f}·N^-{found['alpha']:.3f}" in text
    alpha, floor = (
        f"{intervals[name]['low']:.3f} to {intervals[name]['high']:.3f}" for name in ("alpha", "E")
    )
    assert f"(exponent {alpha}, floor {floor})" in text
    assert f"at {predicted} ({low} to {high}); measured {measured}" in text
    off = 100 * (1 - float(predicted) / float(measured))
    assert f"prediction is {off:.1f} % too low" in text
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert f"the largest predicted from the others within {off:.1f} %" in readme
    smaller = said[said.index("│ smaller") : said.index("│ others")]
    errors = [float(each) for each in re.findall(r"([+-][\d.]+)% │ [\d.]+%", smaller)]
    assert max(map(abs, errors[-3:])) < 3
    runs = [read_run(path) for path in PRINCIPAL.glob("w0.*-s1") if path.name.count("-") == 1]
    runs.sort(key=lambda run: -run.parameters["total"])
    for step in (125, 250, 375, 500):
        losses = [run.curve["loss"][run.curve["step"] == step].item() for run in runs]
        assert losses == sorted(losses)
    starts = [_validations(run.folder)[0] for run in runs[:3]]
    assert {row["step"] for row in starts} == {0}
    said = [f"{row['loss']:.3f} at" for row in reversed(starts)]
    assert f"{said[0]} width 0.175, {said[1]} 0.25, {said[2]} 0.3" in text


def test_the_order_of_sizes_settles_when_the_page_says():
    runs = [read_run(path) for path in RECORDS.glob("w0.*-s1") if path.name.count("-") == 1]
    runs.sort(key=lambda run: -run.parameters["total"])
    assert len(runs) == 7
    settled = {}
    for step in (500, 1000, 1500):
        losses = [run.curve["loss"][run.curve["step"] == step].item() for run in runs]
        settled[step] = losses == sorted(losses)
    assert settled == {500: False, 1000: False, 1500: True}
    for width, said in (("0.075", "3.2 % of the loss (three)"), ("0.05", "0.7 % (two)")):
        ends = [
            read_run(path).final["loss"]
            for path in RECORDS.iterdir()
            if re.fullmatch(rf"w{width}-s\d", path.name)
        ]
        spread = np.std(ends, ddof=1) / np.mean(ends)
        assert f"{100 * spread:.1f} %" == said[:5]
        assert said in STUDY.read_text()


def _validations(folder: Path) -> list[dict]:
    log = MetricsLog(folder)
    log.update()
    return [row for row in log.rows if row["kind"] == "val"]


def test_the_second_recipe_ends_where_the_page_says():
    records = PRINCIPAL
    text = " ".join(STUDY.read_text().split())
    first, runs = (
        [read_run(path) for path in sorted(folder.glob("w0.075-s?"))]
        for folder in (RECORDS, records)
    )
    ends = np.array([run.final["loss"] for run in runs])
    before = np.mean([run.final["loss"] for run in first])
    largest = read_run(RECORDS / "w0.25-s1").final["loss"]
    saved = 1 - ends.mean() / before
    said = f"ends at {ends.mean():.3f} over six seeds, {100 * saved:.0f} % under the first "
    assert len(ends) == 6
    assert said + f"recipe's {before:.3f}" in text
    assert ends.max() < largest
    assert f"4.3 M parameters at {largest:.3f}" in text
    starts = [row["loss"] for run in runs for row in _validations(run.folder) if row["step"] == 0]
    assert f"{np.mean(starts):.3f} before the first step (five seeds" in text
    spread = np.std(ends, ddof=1) / ends.mean()
    assert f"deviation of {100 * spread:.2f} % of the loss" in text
    ladder = ROOT / "configs" / "ladders" / "principal.yaml"
    said = "official .*?([+-][\\d.]+)%\\s+([+-][\\d.]+)% … ([+-][\\d.]+)%"
    command = ["ladder", "compare", str(ladder), "--records", str(records)]
    for options, wording in (
        ((), "six pairs, {1} % ({2} % to {3} %)"),
        (("--confidence", "0.9"), "(`--confidence 0.9`: {2} % to {3} %)"),
    ):
        shown = CliRunner().invoke(app, [*command, *options], env={"COLUMNS": "200"}).output
        found = re.search(said, shown)
        assert wording.format(*found.group(0, 1, 2, 3)) in text
    assert max(abs(float(found[i])) for i in (2, 3)) < 0.3


def test_half_precision_ends_where_single_does():
    records = RECORDS.parent / "precision"
    text = " ".join(STUDY.read_text().split())
    half, single = (
        np.array([read_run(records / f"w0.1{kind}-s{n}").final["loss"] for n in (1, 2, 3)])
        for kind in ("", "-fp32")
    )
    for seed, ends in enumerate(zip(half, single, strict=True), start=1):
        assert f"| {seed} | {ends[0]:.3f} | {ends[1]:.3f} |" in text
    spreads = [100 * ends.std(ddof=1) / ends.mean() for ends in (half, single)]
    assert f"is {spreads[0]:.2f} % in bf16 and {spreads[1]:.2f} % in fp32" in text
    assert 100 * abs(half.mean() / single.mean() - 1) < min(spreads)
    ladder = ROOT / "configs" / "ladders" / "precision.yaml"
    command = ["ladder", "compare", str(ladder), "--records", str(records)]
    shown = CliRunner().invoke(app, command, env={"COLUMNS": "200"}).output
    found = re.search("fp32 .*?([+-][\\d.]+)%\\s+([+-][\\d.]+)% … ([+-][\\d.]+)%", shown)
    assert "{1} % ({2} % to {3} %)".format(*found.group(0, 1, 2, 3)) in text


def test_the_page_says_which_learning_rates_were_best():
    records = RECORDS.parent / "learning-rates"
    text = STUDY.read_text()
    mup, standard = (
        tuned_runs(read_runs(sorted(records.glob(pattern))).runs)
        for pattern in ("mup-*", "standard-*")
    )
    assert not mup.edges
    (said,) = [line for line in mup.said if line.startswith("best learning rates")]
    for rate, width in re.findall(r"([\d.]+) \(mup-w([\d.]+)-", said):
        assert f"| {width} | {float(rate):.2g} |" in text
    spread = re.search(r"a factor of ([\d.]+)$", said)[1]
    assert f"they differ by a factor of {spread}" in text
    # Without it the lowest and the highest rate tried were best: the factor is at least 4.
    assert standard.edges == {"standard-w0.05-r0.008-s1", "standard-w0.25-r0.002-s1"}


def test_the_hours_of_the_rest_are_those_of_the_records():
    speeds: dict[str, list[float]] = {}
    rates = []
    for path in RECORDS.iterdir():
        if SIZES.fullmatch(path.name):
            log = MetricsLog(path)
            log.update()
            crops = [row["crops_per_second"] for row in log.rows if row["kind"] == "train"]
            speeds.setdefault(path.name.split("-")[0], []).append(np.median(crops))
            rates.append(np.median(crops) * read_run(path).train_flops_per_crop / 1e9)
    hours = {width: 36_000 / np.median(found) / 3600 for width, found in speeds.items()}
    text = STUDY.read_text()
    assert f"| widths 0.05 to 0.25, one seed | {sum(hours.values()):.1f} |" in text
    assert text.count(f"{6 * hours['w0.075']:.1f} |") == 2
    assert f"median of {np.median(rates):.0f} GFLOP/s" in text


@pytest.mark.slow
def test_the_hours_of_the_peers_are_of_their_arithmetic():
    text = STUDY.read_text()
    speed = 1e9 * int(re.search(r"median of (\d+) GFLOP/s", text)[1])
    for variant, name in (("elic", "ELIC"), ("dcae", "DCAE"), ("tcm", "TCM")):
        widths = (0.05, 0.075, 0.1, 0.15, 0.25)
        counted = sum(count_flops(model_config(variant, width), 256).train for width in widths)
        assert f"{name} {36_000 * counted / speed / 3600:.1f}" in text


def test_the_table_of_architectures_is_that_of_the_records():
    text = STUDY.read_text()
    for width in ("0.05", "0.075", "0.1", "0.125", "0.175"):
        hpcm, elic = (
            read_run(RECORDS.parent / "families" / family / f"w{width}-s1")
            for family in ("base", "elic")
        )
        cells = [
            f"{r.parameters['total'] / 1e6:.2f} M, {r.final['loss']:.2f}" for r in (hpcm, elic)
        ]
        assert f"| {width} | {cells[0]} | {cells[1]} |" in text
