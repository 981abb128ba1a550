"""The key names of STF's checkpoints: those of github Googolxx/STF at bbcfe3a."""

from hpcm_scale.config.peers.stf import StfConfig
from hpcm_scale.weights.layout import PublishedLayout
from hpcm_scale.weights.peers.naming import DENSITY, SLICE_NETS, SYNONYMS, ignored, renamed


def _names(config: StfConfig) -> dict[str, str]:
    return renamed(
        config,
        (
            *DENSITY,
            *SLICE_NETS,
            (r"^g_a\.0\.", "patch_embed."),
            (r"^g_a\.(\d)\.", lambda match: f"layers.{int(match[1]) - 1}."),
            (r"^g_s\.4\.0\.", "end_conv.0."),
            (r"^g_s\.4\.1\.", "end_conv.2."),
            (r"^g_s\.(\d)\.", r"syn_layers.\1."),
            (r"\.resample\.", ".downsample."),
            (r"\.ln(\d)\.", r".norm\1."),
            (r"\.msa\.embedding_layer\.", ".attn.qkv."),
            (r"\.msa\.linear\.", ".attn.proj."),
            (r"\.msa\.table$", ".attn.relative_position_bias_table"),
            (r"\.mlp\.0\.", ".mlp.fc1."),
            (r"\.mlp\.2\.", ".mlp.fc2."),
            (r"^h_a\.0\.", "h_a."),
            # A pixel shuffle is kept in a list with its convolution.
            (r"^h_s\.(mean|scale)\.0\.([26])\.", r"h_\1_s.\2.0."),
            (r"^h_s\.(mean|scale)\.0\.", r"h_\1_s."),
        ),
    )


LAYOUT = PublishedLayout(
    _names, ("stf",), ignored(r".*\.relative_position_index"), synonyms=SYNONYMS
)
