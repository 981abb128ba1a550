"""The conformance kit on aarch64, emulated: the same symbols and, where they are exact, pixels.

`bash tests/conformance/arm64_root.sh` makes the Python that it runs.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from hpcm_scale.conformance.kit import FOLDER

ROOT = Path(os.environ.get("HPCM_ARM64") or Path.home() / ".cache" / "hpcm-arm64")
EMULATOR = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
FILES = ("base-pixels-grey", "base-bytes-extreme", "base-bytes-pixels", "rates-pixels-extreme")


@pytest.mark.slow
@pytest.mark.skipif(EMULATOR is None, reason="no qemu-aarch64 (apt-get install qemu-user)")
@pytest.mark.skipif(
    not (ROOT / "done").exists(),
    reason=f"no arm64 Python in {ROOT} (bash tests/conformance/arm64_root.sh makes it)",
)
def test_aarch64_conforms() -> None:
    assert EMULATOR is not None  # else it is skipped
    root = ROOT / "root"
    libraries = ":".join(str(root / part / "aarch64-linux-gnu") for part in ("lib", "usr/lib"))
    environment = {
        "QEMU_LD_PREFIX": str(root),
        "QEMU_SET_ENV": f"LD_LIBRARY_PATH={libraries}",
        "PYTHONHOME": str(root / "usr"),
        "PYTHONPATH": f"{FOLDER.parents[2]}:{ROOT / 'site'}",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(
        [
            EMULATOR,
            str(root / "usr/bin/python3.11"),
            "-m",
            "tests.conformance.some",
            "numpy",
            *FILES,
        ],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    # There is no wheel of constriction: the coder is the one in Python.
    assert done.stdout.splitlines() == ["aarch64 False", *(f"{name} None" for name in FILES)]
