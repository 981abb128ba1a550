"""The key names of LALIC's checkpoints: those of github sjtu-medialab/RwkvCompress at d280846."""

import re

from hpcm_scale.config.peers.lalic import LalicConfig
from hpcm_scale.weights.layout import PublishedLayout
from hpcm_scale.weights.peers.naming import DENSITY, SYNONYMS, flattened, ignored, renamed


def _names(config: LalicConfig) -> dict[str, str]:
    return renamed(
        config,
        (
            *DENSITY,
            (r"^entropy_bottleneck\.", "latent_codec.hyper.entropy_bottleneck."),
            *(flattened(config, part, part) for part in ("g_a", "g_s", "h_a", "h_s")),
            (r"\.omni_shift\.kernel(\d)$", r".omni_shift.conv\1x\1.weight"),
            (
                r"^channel_contexts\.(\d+)\.",
                lambda match: f"latent_codec.y.channel_context.y{int(match[1]) + 1}.",
            ),
            (r"^local_contexts\.(\d+)\.", r"latent_codec.y.latent_codec.y\1.context_prediction."),
            # An identity lies between the published nets' layers.
            (
                r"^parameter_nets\.(\d+)\.(\d+)\.",
                lambda match: (
                    f"latent_codec.y.latent_codec.y{match[1]}.entropy_parameters."
                    f"{2 * int(match[2])}."
                ),
            ),
        ),
    )


HYPER = r"latent_codec\.hyper\."

LAYOUT = PublishedLayout(
    _names,
    ("lalic",),
    ignored(rf"{HYPER}h_[as]\..*", r".*\.conv5x5_reparam\.weight", r".*\.context_prediction\.mask"),
    {"wkv": "published"},
    "published weights were trained with the released kernel's weighting of tokens (wkv: "
    "published), which starts its segments otherwise than the formula",
    synonyms=tuple(
        (re.compile(pattern.pattern.replace("^", f"^{HYPER}")), f"latent_codec.hyper.{name}")
        for pattern, name in SYNONYMS
    ),
)
