"""What all tests share."""

import torch
from hypothesis import settings

# Small networks gain nothing from a second thread, and on a busy machine OpenMP's spinning threads
# make them a hundred times slower.
torch.set_num_threads(1)

# No test asserts a time: shared machines are slow when they like.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
