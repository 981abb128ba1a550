"""What many rates cost: the records of configs/speedrun give the figures of its README."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import t

from hpcm_scale.evaluation.bd_rate import bd_rate, overlap

SPEEDRUN = Path(__file__).parents[2] / "configs" / "speedrun"
RECORDS = SPEEDRUN / "records"
LMBDAS = ("0.0018", "0.0067", "0.025")
SEEDS = (1, 2)


def _last_validation(name: str) -> dict:
    rows = map(json.loads, (RECORDS / name / "metrics.jsonl").read_text().splitlines())
    last = [row for row in rows if row["kind"] == "val"][-1]
    config = json.loads((RECORDS / name / "run.json").read_text())["config"]
    assert last["crops"] == config["crops"]  # it ran to its end
    return last


def _curves(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(bpp or PSNR, λ) of the three models of one rate, and of the one of three."""
    ones = [_last_validation(f"one-{lmbda}-s{seed}") for lmbda in LMBDAS]
    every = _last_validation(f"every-s{seed}")
    assert every["crops"] == sum(one["crops"] for one in ones)
    return (
        np.array([[one[name] for one in ones] for name in ("bpp", "psnr")]),
        np.array([[every[f"{name}_{lmbda}"] for lmbda in LMBDAS] for name in ("bpp", "psnr")]),
    )


def test_the_page_says_what_many_rates_cost():
    penalties = []
    for seed in SEEDS:
        ones, every = _curves(seed)
        assert overlap(ones[1], every[1]) > 0.5
        penalties.append(bd_rate(*ones, *every))
    mean = np.mean(penalties)
    half = t.ppf(0.975, len(SEEDS) - 1) * np.std(penalties, ddof=1) / len(SEEDS) ** 0.5
    text = " ".join((SPEEDRUN / "README.md").read_text().split())
    said = f"{mean:+.1f} % ({mean - half:+.1f} % to {mean + half:+.1f} %, two seeds)"
    assert said in text, said
    names = [path.name for path in RECORDS.iterdir()]
    minutes = sum(_last_validation(name)["seconds"] for name in names) / 60
    each = minutes / len(SEEDS)
    assert f"({each:.0f} minutes of one core; the two took {minutes:.0f}, " in text


@pytest.mark.parametrize("seed", SEEDS)
def test_the_page_shows_every_point(seed):
    ones, every = _curves(seed)
    text = (SPEEDRUN / "README.md").read_text()
    for place, lmbda in enumerate(LMBDAS):
        figures = [f"{bpp:.3f} | {psnr:.2f}" for bpp, psnr in (ones[:, place], every[:, place])]
        row = f"| {seed} | {lmbda} | {' | '.join(figures)} |"
        assert row in text, row
