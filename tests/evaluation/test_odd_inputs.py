"""Pictures, files and names that an evaluation meets: nothing is left out in silence."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hpcm_scale.errors import DataError
from hpcm_scale.evaluation import table
from hpcm_scale.evaluation.bd_rate import bd_rate, overlap
from hpcm_scale.evaluation.counts_cache import Counts, CountsCache
from hpcm_scale.evaluation.curves import Curve, deltas
from hpcm_scale.evaluation.plots import plot
from hpcm_scale.evaluation.published import read_points
from hpcm_scale.evaluation.report_file import FORMAT, read
from hpcm_scale.models.zoo import model_config
from tests.evaluation.conftest import Run, photo

BASIC = ("--threads", 1, "--page", 0)


@pytest.fixture
def odd_pictures(pictures: Path) -> Path:
    """The pictures, with a flat one, one below 161 px, and a folder named as a picture."""
    Image.new("RGB", (192, 192), "white").save(pictures / "flat.png")
    Image.fromarray(photo(100, 120)).save(pictures / "small.png")
    (pictures / "x.png").mkdir()
    return pictures


def _lossless() -> str:
    """A codec that loses nothing, as a command line."""
    return "name=[/copy] $x_; quality=1; encode=cp {input} {output}; decode=cp {input} {output}"


def test_flat_and_small_pictures_empty_no_column(
    run: Run, odd_pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "report"
    code, said, error = run("eval", "--data", odd_pictures, "-o", out, "--codecs", "webp", *BASIC)
    assert code == 0, error
    report = json.loads((out / "report.json").read_text())
    assert report["images"] == ["0.png", "1.png", "flat.png", "small.png"]
    assert report["left_out"] == {
        "ms_ssim_db": {"images": ["flat.png", "small.png"], "settings": []},
        "psnr": {"images": ["flat.png"], "settings": []},  # it comes back as it was
    }
    rows = list(csv.DictReader((out / "images.csv").open()))
    flat = [row["psnr"] for row in rows if row["image"] == "flat.png"]
    assert "inf" in flat
    (curve,) = report["curves"]
    assert len(curve["points"]) == 8
    for point in curve["points"]:
        here = {row["image"]: row for row in rows if row["setting"] == point["setting"]}
        for metric, counted in (
            ("psnr", ("0.png", "1.png", "small.png")),
            ("ms_ssim_db", ("0.png", "1.png")),
        ):
            mean = np.mean([float(here[name][metric]) for name in counted])
            assert point[metric] == pytest.approx(mean)
            rate = np.mean([float(here[name]["bpp"]) for name in counted])
            assert point[f"bpp of {metric}"] == pytest.approx(rate)
        assert point["bpp"] == pytest.approx(np.mean([float(row["bpp"]) for row in here.values()]))
    assert "averages leave out 1 pictures where it is infinite or undefined: flat.png" in said
    again = run("table", "--results", out)[1]
    assert "averages leave out 2 pictures" in again
    rates, _ = Curve(**curve).of("psnr")
    assert list(rates) == [point["bpp of psnr"] for point in curve["points"]]


def test_names_are_shown_as_they_are(run: Run, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "[bold]report"
    arguments = ("eval", "--data", pictures, "-o", out, "--codecs", "jpeg", *BASIC)
    code, said, error = run(*arguments, "--codec", _lossless())
    assert code == 0, error
    assert "[/copy] $x_" in said
    assert "[bold]report" in said
    # A lossless codec has no PSNR, and takes it from no other.
    assert "averages leave out 1 settings where it is infinite or undefined: [/copy] $x_ 1" in said
    report = json.loads((out / "report.json").read_text())
    jpeg = next(curve for curve in report["curves"] if curve["name"] == "jpeg")
    assert all(point["psnr"] > 20 for point in jpeg["points"])
    assert "[/copy] $x_" in run("table", "--results", out)[1]
    points = tmp_path / "p.json"
    points.write_text(json.dumps({"name": "[/x]", "results": {"bpp": [1, 2], "psnr": [30, 33]}}))
    code, said, _ = run("table", "--points", points, "--points", points)
    assert code == 0
    assert "[/x] (published)" in said
    curve = Curve("_$\\frac[/x]$", [{"bpp": 1.0, "psnr": 30.0}, {"bpp": 2.0, "psnr": 33.0}])
    assert len(plot([curve], "a $ in a [title]", tmp_path)) == 2


def test_a_narrow_overlap_carries_a_caution(run: Run, tmp_path: Path) -> None:
    low = {"bpp": [0.1, 0.2, 0.4, 0.8], "psnr": [26.0, 28.0, 30.0, 32.0]}
    high = {"bpp": [0.1, 0.2, 0.4, 0.8], "psnr": [31.99, 33.0, 35.0, 37.0]}
    half = {"bpp": [0.1, 0.2, 0.4, 0.8], "psnr": [29.0, 31.0, 33.0, 35.0]}
    curves = [
        Curve.of_points(name, {"psnr": (points["bpp"], points["psnr"])})
        for name, points in (("low", low), ("high", high), ("half", half))
    ]
    found = {delta.curve: delta for delta in deltas(curves, "low") if delta.method == "pchip"}
    assert found["high"].bd_rate < -80  # a figure of 0.01 dB
    assert "0.2% of the wider one's range" in found["high"].caution
    assert found["half"].caution is None
    assert bd_rate(*curves[0].of("psnr"), *curves[1].of("psnr")) == found["high"].bd_rate
    for name, values in (("low", low), ("high", high)):
        (tmp_path / f"{name}.json").write_text(json.dumps({"name": name, "results": values}))
    said = run("table", "--points", tmp_path / "low.json", "--points", tmp_path / "high.json")[1]
    assert "(!) high (published), PSNR (dB): the curves share 0.2%" in said


def test_overlap_is_a_part_of_the_wider_range() -> None:
    assert overlap(np.array([1.0, 5.0]), np.array([3.0, 4.0])) == 0.25
    assert overlap(np.array([1.0, 2.0]), np.array([3.0, 4.0])) == 0
    assert overlap(np.array([2.0]), np.array([2.0])) == 0


NO_POINTS = [
    '{"name": "c", "results": {"bpp": [null, 0.2], "psnr": [28, 30]}}',
    '{"name": "c", "results": {"bpp": [0.1, 0.2], "psnr": [28]}}',
    '{"name": "c", "results": {"bpp": [0.1, 0.2], "psnr": "28, 30"}}',
    '{"name": "c", "results": {"bpp": [0.1, NaN], "psnr": [28, 30]}}',
    '{"name": "c", "results": {"bpp": [], "psnr": []}}',
    '{"name": "c", "results": {"bpp": {"a": 1}, "psnr": [28, 30]}}',
    '{"name": "c", "results": {"bpp": [0.1, true], "psnr": [28, 30]}}',
    '{"name": "c", "results": {"bpp": [0.1, 1' + "0" * 400 + '], "psnr": [28, 30]}}',
    '{"name": "c", "results": []}',
    '{"name": "c", "results": null}',
    '{"results": {"bpp": [0.1], "psnr": [28]}}',
    '{"models": {}}',
    '{"models": []}',
    '{"models": {"m": []}}',
    '{"models": {"m": 3}}',
    '{"models": null}',
    "[]",
    "3",
    "null",
    '"results"',
    "[" * 100_000,
    "\ud83d",
]


@pytest.mark.parametrize("text", NO_POINTS)
@pytest.mark.parametrize("dataset", ["", ":kodak"])
def test_files_that_hold_no_points_are_one_line(tmp_path: Path, text: str, dataset: str) -> None:
    path = tmp_path / "p.json"
    path.write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(DataError) as refused:
        read_points(f"{path}{dataset}")
    assert str(refused.value).startswith("--points: ")
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_points_of_one_data_set_are_checked_too(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    for points in ({"psnr": [[0.1], [None]]}, {"psnr": [[0.1]]}, {"psnr": 3}, [], {}, {"x": [[1]]}):
        path.write_text(json.dumps({"models": {"m": {"kodak": points}}}))
        with pytest.raises(DataError, match=r"p\.json: m: "):
            read_points(f"{path}:kodak")


REPORT = {
    "format": FORMAT,
    "data": "photos",
    "machines": ["one"],
    "curves": [{"name": "c", "points": [{"bpp": 1.0, "psnr": 30.0}], "published": False}],
    "anchor": "c",
    "deltas": [],
}
FAULTS = [
    {"curves": None},
    {"curves": [3]},
    {"curves": [{"name": 3, "points": []}]},
    {"curves": [{"name": "c", "points": [{"psnr": 30.0}]}]},
    {"curves": [{"name": "c", "points": [{"bpp": "x"}]}]},
    {"curves": [{"name": "c", "points": [{"bpp": 1.0, "psnr": [1]}]}]},
    {"curves": [{"name": "c", "points": [3]}]},
    {"deltas": [{}]},
    {"deltas": [{"curve": "c", "metric": "psnr", "method": "x", "bd_rate": 1, "bd_quality": 1}]},
    {"machines": "one"},
    {"data": None},
    {"anchor": []},
    {"left_out": {"psnr": 3}},
]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_report_is_one_line(run: Run, tmp_path: Path, fault: dict) -> None:
    (tmp_path / "report.json").write_text(json.dumps(REPORT | fault))
    code, said, error = run("table", "--results", tmp_path)
    assert code == 2
    assert error.count("\n") == 1, error
    assert "report.json" in error
    assert "PUBLISHED" not in said  # looked at before anything is counted


def test_a_report_of_before_is_read(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps(REPORT))
    report = read(tmp_path)
    assert report.left_out == {}
    assert table.measured_table(report).row_count == 1


def test_edited_results_are_measured_again(run: Run, pictures: Path, tmp_path: Path) -> None:
    arguments = ("eval", "--data", pictures, "-o", tmp_path, "--codecs", "jpeg", *BASIC)
    assert run(*arguments)[0] == 0
    log = tmp_path / "results.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    faults = [{"psnr": "x"}, {"bpp": None}, {"machine": 3}, {"mse": float("nan")}]
    for row, fault in zip(rows, faults, strict=False):
        row |= fault
    lines = [*map(json.dumps, rows), "3", "[]", '{"key": 3}', '{"a": 1}', "[" * 100_000]
    log.write_text("\n".join(lines) + "\n")
    code, _, error = run(*arguments)
    assert code == 0, error
    report = json.loads((tmp_path / "report.json").read_text())
    assert len(report["curves"][0]["points"]) == 8
    assert not report["failures"]
    assert len(log.read_text().splitlines()) == len(lines) + len(faults)


def test_an_anchor_is_looked_for_before_anything_runs(
    run: Run, pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "report"
    arguments = ("eval", "--data", pictures, "-o", out, "--codecs", "jpeg", "--anchor", "vtm")
    code, _, error = run(*arguments, *BASIC)
    assert code == 2
    assert "'vtm' is not one of jpeg" in error
    assert not out.exists()
    codec = "name=a; quality=1; encode='cp {input} {output}; decode=cp {input} {output}"
    code, _, error = run("eval", "--data", pictures, "-o", out, "--codec", codec, *BASIC)
    assert (code, error.count("\n")) == (2, 1), error


def test_counts_are_kept_and_follow_the_configuration(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "counts.json"
    counted = []

    def count(config: object) -> Counts:
        counted.append(config)
        return Counts(len(counted), 0.5)

    base = model_config("base")
    other = model_config("base", overrides={"expansion": 2})
    for expected in (1, 1):
        cache = CountsCache(path, count)
        assert cache.of(base).parameters == expected
        cache.save()
    assert CountsCache(path, count).of(other).parameters == 2
    for damage in ("", "[]", '{"a": 1}', '{"a": ["x", 1]}', "[" * 100_000):
        path.write_text(damage)
        cache = CountsCache(path, count)
        before = len(counted)
        assert cache.of(base).parameters == before + 1
        cache.save()
    path.unlink()
    path.parent.rmdir()
    path.parent.write_text("a file where the folder should be")
    CountsCache(path, count).save()
    cache = CountsCache(path, count)
    cache.of(base)
    cache.save()  # cannot, and says nothing
