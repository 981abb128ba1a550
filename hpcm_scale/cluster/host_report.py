"""Facts about one host, which `hpcm-scale doctor --report` prints as JSON."""

import hashlib
import platform
import socket
import sys
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path

from hpcm_scale.errors import HpcmError, one_line
from hpcm_scale.training.build_tools import missing_tools

ROOT = Path(__file__).parents[2]
"""The top folder of this project."""
CODE = ("hpcm_scale/**/*.py", "launch/*", "configs/**/*.yaml", "configs/**/*.json")
"""Files that decide what a job computes."""


@dataclass(frozen=True)
class HostReport:
    """Facts about one host."""

    python: str
    packages: dict[str, str]
    """Versions by name, of everything installed."""
    code: str
    """Digest of the project's files."""
    accelerators: int
    """0 where there is none but the CPU."""
    port_free: bool
    lacks: list[str]
    """Tools that DeepSpeed needs to compile its operators and does not find."""
    data: str | None
    """Digest of the dataset's manifest; None if no dataset was asked about."""
    data_error: str | None
    """Why the dataset cannot be used."""
    sees_token: bool
    """Whether the file that the asking host wrote is there."""


def host_report(data: str | None, token: str | None, port: int) -> HostReport:
    """The facts of this host.

    Args:
        data: a dataset to look at.
        token: a file to look for.
        port: the job's, to be free.
    """
    fingerprint, error = None, None
    if data is not None:
        try:
            fingerprint = data_fingerprint(data)
        except HpcmError as wrong:
            error = one_line(wrong)
    return HostReport(
        python=f"{platform.python_version()} {sys.executable}",
        packages={d.metadata["Name"]: d.version for d in distributions()},
        code=code_digest(ROOT),
        accelerators=count_accelerators(),
        port_free=is_free(port),
        lacks=missing_tools(),
        data=fingerprint,
        data_error=error,
        sees_token=token is not None and Path(token).exists(),
    )


def code_digest(root: Path) -> str:
    """SHA-256 over the names and bytes of the project's files, 12 hexadecimal digits of it."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in CODE for path in root.glob(pattern)}):
        if path.is_file():
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{path.relative_to(root)} {content}\n".encode())
    return digest.hexdigest()[:12]


def data_fingerprint(root: str) -> str:
    """Digest of all splits of a dataset, once the sizes of their shards are right.

    Raises:
        DataError: if manifest or shards are missing or damaged.
    """
    from hpcm_scale.data.shards import check_files, read_manifest

    manifest = read_manifest(root)
    splits = [manifest.split(name, root) for name in manifest.splits()]
    for split in splits:
        check_files(root, split)
    return ", ".join(f"{split.name} {split.fingerprint():012x}" for split in splits)


def count_accelerators() -> int:
    """Devices that torch sees beside the CPU."""
    import torch

    return torch.accelerator.device_count() if torch.accelerator.is_available() else 0


def is_free(port: int) -> bool:
    """Whether nothing listens on a port of this host."""
    try:
        with socket.create_server(("", port)):
            return True
    except OSError:
        return False
