"""What an engine finds wrong in some files of the kit, the peers' part included.

python -m tests.conformance.some ENGINE NAME...
"""

import platform
import sys
from contextlib import ExitStack
from functools import cache
from pathlib import Path

from hpcm_scale.codec.engines.choose import load_engine
from hpcm_scale.codec.engines.engine import Engine
from hpcm_scale.conformance.check import fault_of
from hpcm_scale.conformance.kit import FOLDER, PEERS, cases, contents, model_file, opened

if __name__ == "__main__":
    kind, *names = sys.argv[1:]

    @cache
    def engine_of(model: str, folder: Path) -> Engine:
        return load_engine(model_file(model, folder), kind)

    print(platform.machine(), "constriction" in sys.modules)
    with ExitStack() as stack:
        kits = (FOLDER, PEERS) if kind == "torch" else (FOLDER,)
        folders = [stack.enter_context(opened(kit)) for kit in kits]
        found = {case.name: (case, folder) for folder in folders for case in cases(folder)}
        for name in names:
            case, folder = found[name]
            print(name, fault_of(engine_of(case.model, folder), case, contents(name, folder)))
