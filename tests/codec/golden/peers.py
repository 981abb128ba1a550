"""What the peers' exact paths hand out, of parameters and symbols that a rule gives, as JSON.

python -m tests.codec.golden.peers THREADS [MODEL FILE]... also decodes files. `peers.json` holds
what they handed out when each was made exact.
"""

import json
import sys
import zlib
from pathlib import Path

import numpy as np
import torch

from hpcm_scale.entropy.exact.arithmetic import ORIGINAL, Arithmetic
from hpcm_scale.entropy.exact.parameters import ExactParameters
from hpcm_scale.entropy.exact.product import multiplies_bytes
from hpcm_scale.entropy.parameters import StepCoding
from hpcm_scale.entropy.table_building import build_tables
from tests.codec.golden.decode import decoded
from tests.entropy.peer_models import CONFIGS, GRID, network, symbols

ARITHMETICS = (ORIGINAL, Arithmetic(2, frozenset({"mean_nets.1.0", "scale_nets.2.2"})))
PEERS = tuple(CONFIGS)


def digests(variant: str) -> list[int]:
    """Of each arithmetic, CRC-32 of every step's scales and means and of ŷ, over 1024."""
    made = network(variant)
    tables = build_tables(made)
    z_symbols = torch.from_numpy(symbols(variant, (1, made.config.hyper_channels, *GRID)))
    found = []
    for arithmetic in ARITHMETICS:
        passed = []

        def code(step: int, coding: StepCoding, passed=passed) -> torch.Tensor:
            passed.extend([coding.scale, coding.mean])
            shape = tuple(coding.mean.shape)
            return torch.from_numpy(symbols(f"{variant} {step}", shape))

        with torch.inference_mode():
            path = ExactParameters(made, tables, arithmetic)
            passed.append(path.walk(z_symbols, code))
        crc = 0
        for values in passed:
            integers = (1024 * values.double()).numpy().astype("<i8")
            assert np.array_equal(integers, 1024 * values.double().numpy())
            crc = zlib.crc32(np.ascontiguousarray(integers).tobytes(), crc)
        found.append(crc)
    return found


def main() -> None:
    """Print digests of every peer, and of what the files given decode to."""
    torch.set_num_threads(int(sys.argv[1]))
    files = [
        [result.symbols, result.y_hat]
        for model, file in zip(sys.argv[2::2], sys.argv[3::2], strict=True)
        for result in [decoded(Path(model), Path(file).read_bytes())]
    ]
    found = {variant: digests(variant) for variant in PEERS}
    in_bytes = multiplies_bytes(torch.device("cpu"))
    print(json.dumps({"peers": found, "files": files, "bytes": in_bytes}))


if __name__ == "__main__":
    main()
