"""The optimisation run."""

import os

import torch

# Before deepspeed is imported anywhere below: left to itself it warns about what it guesses.
if not torch.accelerator.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
