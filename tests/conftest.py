"""What all tests share."""

import os

# A console takes its width when it is made, once in a process: before any test sets one.
os.environ.pop("COLUMNS", None)

import torch
from hypothesis import settings

from hpcm_scale.cli.program import console, errors
from hpcm_scale.codec.engines import torch_engine

assert console.width == errors.width

# Small networks gain nothing from a second thread, and on a busy machine OpenMP's spinning threads
# make them a hundred times slower.
torch.set_num_threads(1)

# Encoders choose the same on processors that multiply bfloat16 and on those that do not.
torch_engine.has_native_bf16 = lambda: False

# No test asserts a time: shared machines are slow when they like.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
