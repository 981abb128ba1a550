"""Trains one run; what the deepspeed launcher runs on every rank of a checkout.

`deepspeed launch/train.py --config configs/runs/X.yaml [--set key=value ...]`, or `python
launch/train.py ...` for one process. `hpcm-scale train` does both: hpcm_scale/cli/rank.py.
"""

from hpcm_scale.cli.rank import main

if __name__ == "__main__":
    main()
