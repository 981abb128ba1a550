"""Trains one run: `deepspeed launch/train.py --config configs/runs/X.yaml [--set key=value ...]`.

Also `python launch/train.py ...` for one process without the launcher.
"""

import argparse
import os
import sys

from hpcm_scale.config import load_run
from hpcm_scale.errors import HpcmError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True, help="a YAML file: configs/runs/*.yaml")
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="over the file")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the launcher's
    arguments = parser.parse_args()
    try:
        run = load_run(arguments.config, arguments.set)
        from hpcm_scale.training.loop import train  # after parsing: deepspeed takes seconds to load

        train(run)
    except HpcmError as error:
        if int(os.environ.get("RANK", "0")) == 0:
            sys.stderr.write(f"train: {' '.join(str(error).split())}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
