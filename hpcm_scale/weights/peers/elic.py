"""The key names of ELIC's checkpoints: those of github JiangWeibeta/ELIC at 9f0d716."""

from hpcm_scale.config.peers.elic import ElicConfig
from hpcm_scale.weights.layout import PublishedLayout
from hpcm_scale.weights.peers.naming import DENSITY, SYNONYMS, flattened, ignored, later, renamed


def _names(config: ElicConfig) -> dict[str, str]:
    units = config.attention_depth
    return renamed(
        config,
        (
            *DENSITY,
            flattened(config, "g_a", "g_a.analysis_transform"),
            flattened(config, "g_s", "g_s.synthesis_transform"),
            flattened(config, "h_a", "h_a.reduction"),
            flattened(config, "h_s", "h_s.increase"),
            (r"\.trunk\.(\d+)\.branch\.", r".conv_a.\1.conv."),
            (rf"\.mask\.{units}\.", rf".conv_b.{units}."),
            (r"\.mask\.(\d+)\.branch\.", r".conv_b.\1.conv."),
            (r"^channel_contexts\.(\d+)\.", later("channel_context")),
            (r"^(channel_context\.\d+)\.", r"\1.fushion."),
            (r"^local_contexts\.", "local_context."),
            (r"^anchor_nets\.(\d+)\.", r"entropy_parameters_anchor.\1.fusion."),
            (r"^other_nets\.(\d+)\.", r"entropy_parameters_nonanchor.\1.fusion."),
        ),
    )


LAYOUT = PublishedLayout(_names, ("elic",), ignored(), synonyms=SYNONYMS)
