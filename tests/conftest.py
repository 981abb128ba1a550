"""What all tests share."""

import torch

# Small networks gain nothing from a second thread, and on a busy machine OpenMP's spinning threads
# make them a hundred times slower.
torch.set_num_threads(1)
