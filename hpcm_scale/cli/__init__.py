"""The program `hpcm-scale`: each verb is a thin call into one folder of the package."""

from hpcm_scale.cli import (
    bench,
    cluster,
    coding,
    config,
    conform,
    data,
    evaluation,
    models,
    runs,
    scaling,
    train,
)
from hpcm_scale.cli.program import app, main

__all__ = [
    "app",
    "bench",
    "cluster",
    "coding",
    "config",
    "conform",
    "data",
    "evaluation",
    "main",
    "models",
    "runs",
    "scaling",
    "train",
]
