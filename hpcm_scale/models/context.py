"""The context model's nets: step adaptors, shared nets, and the progressive fusion."""

import torch
from torch import Tensor, nn

from hpcm_scale.config import SharedNetConfig
from hpcm_scale.models.blocks.resampling import Conv1x1
from hpcm_scale.models.blocks.residual import DWConvRB


class SharedNet(nn.Module):
    """The net that all steps of a scale share: (B, 3M, h, w) -> ψ (B, 2M, h, w)."""

    def __init__(self, latent_channels: int, config: SharedNetConfig) -> None:
        super().__init__()
        m = latent_channels
        self.before = nn.Sequential(*(DWConvRB(3 * m) for _ in range(config.before)))
        self.after = nn.Sequential(
            *(DWConvRB(3 * m) for _ in range(config.after)),
            Conv1x1(3 * m, 2 * m),
            *(DWConvRB(2 * m) for _ in range(config.out)),
        )

    def forward(self, x: Tensor, step_scale: Tensor) -> Tensor:
        return self.after(self.before(x) * step_scale)


class ContextStep(nn.Module):
    """One coding step: its adaptor and its scale on the shared net's middle.

    The shared net is passed in rather than held, so that it has one owner; it runs inside this
    forward, because ZeRO-3 gathers `scale` only for as long as its owner's forward lasts.
    """

    def __init__(self, latent_channels: int, adaptor_depth: int) -> None:
        super().__init__()
        channels = 3 * latent_channels
        self.adaptor = (
            nn.Sequential(*(DWConvRB(channels) for _ in range(adaptor_depth)))
            if adaptor_depth
            else Conv1x1(channels, channels)
        )
        self.scale = nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(self, context: Tensor, y_hat: Tensor, shared: SharedNet) -> Tensor:
        """ψ (B, 2M, h, w) from the context (B, 2M, h, w) and the latents so far (B, M, h, w)."""
        return shared(self.adaptor(torch.cat([context, y_hat], dim=1)), self.scale)


class WindowFusion(nn.Module):
    """Progressive context fusion: C <- Attn(Q = ψ, K = V = C) in windows + W_o ψ.

    All four projections are 1×1; heads are contiguous channels. Source: arXiv 2507.19125.
    """

    def __init__(self, channels: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.window = window
        self.query = Conv1x1(channels, channels)
        self.key = Conv1x1(channels, channels)
        self.value = Conv1x1(channels, channels)
        self.out = Conv1x1(channels, channels)

    def forward(self, psi: Tensor, context: Tensor) -> Tensor:
        """(B, 2M, h, w) twice -> (B, 2M, h, w); h and w multiples of the window."""
        b, c, h, w = psi.shape
        s = self.window
        # Written out: windows are too short for a fused kernel to gain anything, and FLOP counters
        # see matrix products on every device.
        query = self._windows(self.query(psi)) * (c // self.heads) ** -0.5
        weights = (query @ self._windows(self.key(context)).transpose(-1, -2)).softmax(-1)
        attended = weights @ self._windows(self.value(context))
        # (B·windows, heads, s·s, d) back to (B, h, w, 2M)
        attended = attended.view(b, h // s, w // s, self.heads, s, s, c // self.heads)
        attended = attended.permute(0, 1, 4, 2, 5, 3, 6).reshape(b, h, w, c)
        return attended.permute(0, 3, 1, 2) + self.out(psi)

    def _windows(self, x: Tensor) -> Tensor:
        """(B, 2M, h, w) -> (B·windows, heads, s·s, head_dim)."""
        b, c, h, w = x.shape
        s = self.window
        x = x.permute(0, 2, 3, 1).reshape(b, h // s, s, w // s, s, self.heads, c // self.heads)
        return x.permute(0, 1, 3, 5, 2, 4, 6).reshape(-1, self.heads, s * s, c // self.heads)
