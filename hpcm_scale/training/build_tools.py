"""The programs that DeepSpeed compiles its operators with, which only offloading needs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from hpcm_scale.errors import ConfigError
from hpcm_scale.training.zero_layout import ZeroLayout

PACKAGES = "Debian: apt-get install g++ ninja-build libaio-dev"
"""How to get all of them."""


def missing_tools() -> list[str]:
    """Which of ninja, a C++ compiler and libaio's headers are not there."""
    # As the ranks do, look among this environment's programs first (engine.py).
    path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"
    compiler = shutil.which(os.environ.get("CXX", "c++"), path=path)
    missing = [] if shutil.which("ninja", path=path) else ["ninja"]
    if compiler is None:
        return [*missing, "C++ compiler"]
    include = [compiler, "-E", "-x", "c++", "-include", "libaio.h", os.devnull]
    if subprocess.run(include, capture_output=True).returncode:
        missing.append("libaio")
    return missing


def check_tools(name: str, layout: ZeroLayout) -> None:
    """
    Args:
        name: of the DeepSpeed configuration that `layout` is of.

    Raises:
        ConfigError: if it needs an operator that cannot be compiled here.
    """
    if layout.optimizer_on == layout.parameters_on == "none":
        return
    on_disk = "nvme" in (layout.optimizer_on, layout.parameters_on)
    lacking = [tool for tool in missing_tools() if tool != "libaio" or on_disk]
    if lacking:
        raise ConfigError(
            f"deepspeed: {name} offloads, for which DeepSpeed compiles operators, and this host "
            f"has no {', no '.join(lacking)} ({PACKAGES}); install it or keep the state in memory "
            "(deepspeed: zero3)"
        )
