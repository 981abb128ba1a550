"""The key names of FLIC's checkpoints: those of github qingshi9974/ICLR2024-FTIC at e0d4886."""

import re

from hpcm_scale.config.peers.flic import FlicConfig
from hpcm_scale.weights.layout import PublishedLayout
from hpcm_scale.weights.peers.naming import (
    DENSITY,
    SAMPLING,
    SHUFFLED,
    SYNONYMS,
    hyper_pair,
    ignored,
    renamed,
)


def _names(config: FlicConfig) -> dict[str, str]:
    return renamed(
        config,
        (
            *DENSITY,
            *SAMPLING,
            *hyper_pair(config),
            *SHUFFLED,
            (r"\.trans_block\.attention\.", ".trans_block."),
            (r"^(lift|layers)\.", r"tca.TCA.\1."),
            (r"^start\.", "tca.TCA.start_token_from_hyperprior."),
            (r"\.projection\.norm\.", ".norm1."),
            (r"\.projection\.position\.", ".cpe.0.proj."),
            (r"\.projection\.position_norm\.", ".cpe.0.norm."),
            (r"\.projection\.([qkv])\w+\.", r".\g<1>1."),
            (r"\.mixing\.proj\.", ".attn.proj."),
            (r"\.mixing\.norm\.", ".norm2."),
            (r"\.mixing\.fc", ".mlp.fc"),
            (r"^hyper_transform\.", "tca.hyper_trans."),
            (r"^parameter_net\.first\.", "tca.entropy_parameters_net.0."),
            (r"^parameter_net\.second\.", "tca.entropy_parameters_net.2."),
            (r"^parameter_net\.third\.", "tca.entropy_parameters_net.4."),
        ),
    )


LAYOUT = PublishedLayout(
    _names,
    ("flic",),
    ignored(r".*\.relative_position_index"),
    {"hyper_shift": "published"},
    "published weights were trained with windows of one position that the hyper nets roll in and "
    "not back (hyper_shift: published)",
    unused=re.compile(
        r"tca\.TCA\.start_token|h_\w+\.\d+\.trans_block\.attns\.1\.relative_position_bias_table"
    ),
    synonyms=SYNONYMS,
)
