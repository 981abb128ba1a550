"""Complete runs of two ranks, one after the other: how often each exit code came. DATASET OUT N."""

import json
import sys
from collections import Counter
from pathlib import Path

from hpcm_scale.config import RunConfig
from hpcm_scale.training.rendezvous import free_port
from tests.distributed.failing import FORK, RANKS, train


def main() -> None:
    dataset, folder, number = sys.argv[1:]
    codes: Counter[int | None] = Counter()
    for i in range(int(number)):
        out = Path(folder) / str(i)
        out.mkdir(parents=True)
        run = RunConfig.model_validate(
            {
                "name": "small",
                "out": out,
                "model": {"width": 0.025},
                "data": {"train": dataset, "streams": 4, "workers": 1, "shuffle_buffer": 4},
                "steps": 1,
                "batch": 2,
                "log_every": 1,
            }
        )
        port = free_port()
        ranks = [
            FORK.Process(target=train, args=(run, "never", rank, port, out / f"said-{rank}"))
            for rank in range(RANKS)
        ]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
            codes[process.exitcode] += 1
        sys.stdout.write(json.dumps({"runs": i + 1, "codes": dict(codes)}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
