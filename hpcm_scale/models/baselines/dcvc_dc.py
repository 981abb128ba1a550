"""DCVC-DC intra*: the four-part quadtree prior of DCVC-DC's image codec, on Base's transforms.

Source: Li, Li and Lu, arXiv 2302.14402, as the baseline of arXiv 2507.19125.
"""

import torch
from torch import Tensor, nn

from hpcm_scale.config import HpcmConfig
from hpcm_scale.models import grids
from hpcm_scale.models.blocks.resampling import Conv1x1
from hpcm_scale.models.blocks.residual import DWConvRB
from hpcm_scale.models.codec_network import Code, CodecNetwork
from hpcm_scale.models.density import ZPrior
from hpcm_scale.models.schedule import QUADTREE
from hpcm_scale.models.transforms import analysis, hyper_analysis, hyper_synthesis, synthesis


class QuadtreeStep(nn.Module):
    """One coding step after the first: its own blocks, then the prior that all steps share.

    The shared prior is passed in rather than held, so that it has one owner.
    """

    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        self.adaptor = nn.Sequential(*(DWConvRB(channels) for _ in range(depth)))

    def forward(self, params: Tensor, y_hat: Tensor, shared: nn.Module) -> Tensor:
        """(scale | mean) (B, 2M, h, w) from h_s(ẑ) (B, 2M, h, w) and ŷ so far (B, M, h, w)."""
        return shared(self.adaptor(torch.cat([params, y_hat], dim=1)))


class DcvcDcIntra(CodecNetwork[HpcmConfig, grids.StepGrids]):
    """The codec network of one `HpcmConfig` with architecture "dcvc-dc-intra".

    The reading built: M channels in four groups, coded in four steps on the full grid, every
    step one position of each 2×2 block per group. Step 1 takes scale and mean from the
    hyperprior. Steps 2 to 4 read [h_s(ẑ) | ŷ so far], 3M channels: one DWConvRB(3M) of the step's
    own, then three DWConvRB(3M) and a 1×1 to 2M that they share. h_s is Base's. It counts
    45.514 M parameters and 542.13 kMACs/pixel (`hpcm-scale info dcvc-dc-intra`); arXiv 2507.19125
    prints 45.51 M and 542.14.

    `adaptor_depths[2]` and `shared_s3` of the configuration set the depths: S3 is the full grid.
    """

    repeats_modules = True

    def __init__(self, config: HpcmConfig) -> None:
        super().__init__(
            config,
            grids.StepGrids(QUADTREE),
            g_a=analysis(config),
            g_s=synthesis(config),
            h_a=hyper_analysis(config),
            h_s=hyper_synthesis(config, 2 * config.latent_channels),
            z_prior=ZPrior(config.hyper_channels),
        )
        m, shared = config.latent_channels, config.shared_s3
        self.steps = nn.ModuleList(
            QuadtreeStep(3 * m, config.adaptor_depths[2]) for _ in QUADTREE.steps[1:]
        )
        self.shared = nn.Sequential(
            *(DWConvRB(3 * m) for _ in range(shared.before + shared.after)),
            Conv1x1(3 * m, 2 * m),
            *(DWConvRB(2 * m) for _ in range(shared.out)),
        )

    def code_steps(self, params: Tensor, code: Code) -> Tensor:
        """Walk the coding steps; arguments and result as `CodecNetwork.code_steps`."""
        own, y_hat = params, None
        for k, (_, table) in enumerate(QUADTREE.steps):
            if k:
                own = self.run(self.steps[k - 1], params, y_hat, self.shared)
            groups = QUADTREE.scales[0].groups
            coded = code(k, *grids.take(own, table, groups, parts=2).chunk(2, dim=1))
            placed = grids.place(coded, table, groups)
            y_hat = placed if y_hat is None else y_hat + placed
        assert y_hat is not None  # a schedule has steps
        return y_hat
