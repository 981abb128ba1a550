"""The key names of DCAE's checkpoints: those of github LabShuHangGU/DCAE at bd00306."""

from hpcm_scale.config.peers.dcae import DcaeConfig
from hpcm_scale.weights.layout import PublishedLayout
from hpcm_scale.weights.peers.naming import (
    DENSITY,
    SLICE_NETS,
    SYNONYMS,
    flattened,
    ignored,
    renamed,
)


def _names(config: DcaeConfig) -> dict[str, str]:
    parts = {"g_a": "g_a", "g_s": "g_s", "h_a": "h_a", "h_s.scale": "h_z_s1", "h_s.mean": "h_z_s2"}
    depth = config.residual_depth
    return renamed(
        config,
        (
            *DENSITY,
            *SLICE_NETS,
            *(flattened(config, ours, theirs) for ours, theirs in parts.items()),
            # Bottlenecks stand after a convolution, before a transposed one.
            *(
                (rf"^({part}\.\d+)\.{i}\.branch\.", rf"\1.res{i + shift}.branch.")
                for part, shift in (("(?:g_a|h_a)", 0), (r"(?:g_s|h_z_s\d)", 1))
                for i in range(depth + 1)
            ),
            (r"^((?:g_a|h_a)\.\d+)\.0\.", r"\1.conv."),
            (rf"^((?:g_s|h_z_s\d)\.\d+)\.{depth}\.", r"\1.conv."),
            (r"\.branch\.0\.", ".conv1."),
            (r"\.branch\.2\.", ".conv2."),
            (r"\.branch\.4\.", ".conv3."),
            (r"\.msa\.table$", ".msa.relative_position_params"),
            (r"\.mlp\.depthwise\.", ".mlp.dwconv.dwconv."),
            (r"^dictionary\.entries$", "dt"),
            (r"^attentions\.", "dt_cross_attention."),
            (r"\.output_trans\.", ".output_trans.0."),
            (r"\.msa\.start\.", ".msa.s."),
            (r"\.msa\.layers\.(\d)\.", r".msa.dense.conv_layers.\1.1."),
            (r"\.msa\.proj\.", ".msa.dense.proj."),
            (r"\.msa\.gate\.", ".msa.spatial_atte.conv1."),
        ),
    )


LAYOUT = PublishedLayout(_names, ("dcae",), ignored(), synonyms=SYNONYMS)
