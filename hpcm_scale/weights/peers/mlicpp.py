"""The key names of MLIC++'s checkpoints: those of github JiangWeibeta/MLIC at 4aa9d2a."""

from hpcm_scale.config.peers.mlicpp import MlicppConfig
from hpcm_scale.weights.layout import PublishedLayout
from hpcm_scale.weights.peers.naming import (
    DENSITY,
    SAMPLING,
    SYNONYMS,
    flattened,
    ignored,
    later,
    renamed,
)


def _names(config: MlicppConfig) -> dict[str, str]:
    return renamed(
        config,
        (
            *DENSITY,
            *SAMPLING,
            flattened(config, "g_a", "g_a.analysis_transform"),
            flattened(config, "g_s", "g_s.synthesis_transform"),
            flattened(config, "h_a", "h_a.reduction"),
            flattened(config, "h_s", "h_s.increase"),
            # A pixel shuffle is kept in a list with its convolution.
            (
                r"^(h_s\.increase\.[26]|g_s\.synthesis_transform\.\d+)\.(weight|bias)$",
                r"\1.0.\2",
            ),
            (r"^local_contexts\.(\d+)\.(attend\.)?", r"local_context.\1."),
            (r"(local_context\.\d+\.mlp)\.0\.", r"\1.fc1."),
            (r"(local_context\.\d+\.mlp)\.2\.", r"\1.fc2."),
            # No context of channels or whole maps is listed for the first slice.
            (r"^channel_contexts\.(\d+)\.", later("channel_context")),
            (r"^(channel_context\.\d+)\.", r"\1.fushion."),
            (r"^global_contexts\.(\d+)\.", later("global_inter_context")),
            (r"^checkerboard_contexts\.(\d+)\.", later("global_intra_context")),
            (r"^anchor_nets\.(\d+)\.", r"entropy_parameters_anchor.\1.fusion."),
            (r"^other_nets\.(\d+)\.", r"entropy_parameters_nonanchor.\1.fusion."),
            (r"^anchor_residuals\.(\d+)\.net\.", r"lrp_anchor.\1.lrp_transform."),
            (r"^other_residuals\.(\d+)\.net\.", r"lrp_nonanchor.\1.lrp_transform."),
        ),
    )


LAYOUT = PublishedLayout(
    _names,
    ("mlicpp", "mlicpp_fixed"),
    ignored(r".*\.relative_position_index"),
    synonyms=SYNONYMS,
)
