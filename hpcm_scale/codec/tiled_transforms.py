"""Pixels to latents and back, in pieces of bounded size that overlap by what the network sees."""

import numpy as np
import torch
from torch import Tensor

from hpcm_scale.codec.coding_result import OnProgress, unheard
from hpcm_scale.codec.tiles import (
    LATENT,
    WHOLE,
    Grid,
    canvas,
    in_pieces,
    piece_side,
    reach_of,
    transform_bytes,
)
from hpcm_scale.models.codec_network import CodecNetwork


def analyse(
    network: CodecNetwork, pixels: np.ndarray, memory: int, on_progress: OnProgress = unheard
) -> Tensor:
    """g_a of a picture padded to its canvas.

    Args:
        pixels: uint8, (H, W, 3) or (H, W).
        memory: bytes to work in, about.
        on_progress: told how far it is.

    Returns:
        (1, M, h, w) in channels_last memory, h and w those of the canvas over 16.
    """
    height, width = pixels.shape[:2]
    sides = canvas(height, width, network.image_multiple)
    shape = (1, network.config.latent_channels, *(side // LATENT for side in sides))
    device = next(network.parameters()).device
    y = torch.empty(shape, device=device, memory_format=torch.channels_last)

    def run(read: Grid, keep: Grid) -> None:
        # Past its edge the picture is continued by its last row and column.
        rows = np.arange(read.top * LATENT, (read.top + read.height) * LATENT)
        columns = np.arange(read.left * LATENT, (read.left + read.width) * LATENT)
        window = np.ix_(rows.clip(max=height - 1), columns.clip(max=width - 1))
        x = torch.from_numpy(_rgb(pixels[window])[None]).to(device)
        latents = network.g_a(dense(x.permute(0, 3, 1, 2) / 255))
        keep.of(y).copy_(_within(read, keep).of(latents))
        on_progress(_done(keep, (shape[-2], shape[-1])))

    in_pieces(shape[-2], shape[-1], *_pieces(network, 0, memory), run)
    return y


def synthesise(
    network: CodecNetwork,
    y_hat: Tensor,
    size: tuple[int, int],
    grey: bool,
    on_progress: OnProgress,
    memory: int,
) -> np.ndarray:
    """g_s as 8-bit pixels.

    Args:
        y_hat: (1, M, h, w), covering at least the picture.
        size: height and width of the picture.
        on_progress: told how far it is.
        memory: bytes to work in, about.

    Returns:
        uint8 (height, width, 3), or (height, width) if `grey`: the mean of the channels.
    """
    height, width = size
    pixels = np.empty((height, width) if grey else (height, width, 3), np.uint8)
    if reach_of(network.g_s) is not None:
        y_hat = y_hat[..., : -(-height // LATENT), : -(-width // LATENT)]

    def run(read: Grid, keep: Grid) -> None:
        within = _within(read, keep)
        within = Grid(*(LATENT * side for side in vars(within).values()))
        x = within.of(network.g_s(dense(read.of(y_hat))))[0]
        x = x.mean(0, keepdim=True) if grey else x
        x = x.clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
        top, left = LATENT * keep.top, LATENT * keep.left
        place = pixels[top : top + x.shape[0], left : left + x.shape[1]]
        x = x[: place.shape[0], : place.shape[1]]
        place[:] = x[..., 0] if grey else x
        on_progress(_done(keep, (y_hat.shape[-2], y_hat.shape[-1])))

    rows, columns = y_hat.shape[-2:]
    in_pieces(rows, columns, *_pieces(network, 1, memory), run)
    return pixels


def _pieces(network: CodecNetwork, which: int, memory: int) -> tuple[int, int]:
    """Side and reach, in latents, of the pieces of g_a (0) or g_s (1)."""
    reach = reach_of((network.g_a, network.g_s)[which])
    if reach is None:
        return WHOLE // LATENT, 0
    side = piece_side(reach, transform_bytes(network.config)[which], memory)
    return side // LATENT, reach // LATENT


def dense(x: Tensor) -> Tensor:
    """`x` in channels_last memory, the layout the network is fastest in."""
    return x.contiguous(memory_format=torch.channels_last)


def _rgb(pixels: np.ndarray) -> np.ndarray:
    return pixels if pixels.ndim == 3 else pixels[..., None].repeat(3, axis=2)


def _done(piece: Grid, sides: tuple[int, int]) -> float:
    """The share of a grid that is covered once a piece is, row after row of pieces."""
    rows, columns = sides
    before = piece.top * columns + piece.height * piece.left
    return (before + piece.height * piece.width) / (rows * columns)


def _within(read: Grid, keep: Grid) -> Grid:
    """`keep` in the coordinates of `read`."""
    return Grid(keep.top - read.top, keep.left - read.left, keep.height, keep.width)
