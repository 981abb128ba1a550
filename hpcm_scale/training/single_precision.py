"""What a GPU makes of products in single precision."""

import torch


def set_tf32(allowed: bool) -> None:
    """Have a GPU round the factors of fp32 products to 10 of their 23 bits, or none of them.

    By torch's default convolutions do, matrix products do not.
    """
    torch.backends.cudnn.allow_tf32 = allowed
    torch.backends.cuda.matmul.allow_tf32 = allowed
