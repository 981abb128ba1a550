"""Synthetic run folders, written as the trainer writes them, from a known law."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

WriteRun = Callable[..., Path]


@pytest.fixture
def write_run(tmp_path: Path) -> WriteRun:
    """write_run(parameters, seed=…, …) -> run folder whose losses follow E + A N^-α + B D^-β."""

    def write(
        parameters: int,
        *,
        seed: int = 0,
        images: int = 40_000,
        lmbda: float = 0.013,
        noise: float = 0.002,
        truth: tuple[float, ...] = (1.2, 60.0, 0.35, 40.0, 0.4),
        rows: int = 20,
        loss: float | None = None,
        model: dict | None = None,
        folder: str | None = None,
        config: dict | None = None,
        at_rate: Callable[[int, float], float] | None = None,
    ) -> Path:
        """at_rate: loss of so many parameters at a λ of `model["rates"]`, before noise."""
        rng = np.random.default_rng((seed, parameters, images))
        name = folder or f"n{parameters}-d{images}-s{seed}-l{lmbda}"
        path = tmp_path / "runs" / name
        path.mkdir(parents=True)
        flops = 3e4 * parameters
        record = {
            "name": name,
            "config": {
                "seed": seed,
                "loss": {"lmbda": lmbda, "distortion": "mse", "rate_balance": 0.5},
                "model": {"architecture": "hpcm", **(model or {})},
                **(config or {}),
            },
            "parameters": {
                "total": parameters,
                "transform": parameters // 2,
                "hyper": parameters // 8,
                "context": parameters - parameters // 2 - parameters // 8,
            },
            "flops_per_image": {"forward": flops / 3, "train": flops},
            "images_per_step": 8,
            "versions": {"torch": "2.13.0"},
            "git_commit": "0" * 40,
            "started": "2026-01-01T00:00:00+00:00",
        }
        (path / "run.json").write_text(json.dumps(record))
        e, a, alpha, b, beta = truth
        # One draw for the run and a little for each row: rows of one run move together.
        own = 1 + noise * rng.standard_normal()
        lines = []
        for seen in 8 * np.unique(np.geomspace(images / 400, images / 8, rows).round()):
            value = (e + a * parameters**-alpha + b * seen**-beta) * own
            value *= 1 + noise / 5 * rng.standard_normal()
            value = value if loss is None else loss
            mse = 0.4 * value / (lmbda * 255**2)
            row = {
                "step": int(seen // 8), "images": int(seen), "flops": flops * int(seen),
                "epoch": 0, "loss": value, "bpp": 0.6 * value, "mse": mse,
                "psnr": -10 * np.log10(mse), "bpp_y": 0.5 * value, "bpp_z": 0.1 * value,
                "seconds": 1.0,
            }  # fmt: skip
            if at_rate is not None:
                rates = (model or {})["rates"]
                middle = (rates[0] * rates[-1]) ** 0.5
                for rate in rates:
                    there = at_rate(parameters, rate) * own
                    row |= {f"loss_{rate:g}": there * (middle / rate) ** 0.5}
                    row |= {f"bpp_{rate:g}": 0.6 * there, f"psnr_{rate:g}": 30.0}
            lines.append(json.dumps({"kind": "train", **row}))
            lines.append(json.dumps({"kind": "val", **row}))
        (path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        return path

    return write
