"""Writing files so that an interrupted command leaves the old file or the new one, never half."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(target: Path | str) -> Iterator[Path]:
    """A temporary path beside `target`: renamed onto it if the block ends well, else removed.

    Raises:
        OSError: if the folder of `target` cannot be made or written.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Names end at 255 bytes: of a long one its beginning is enough.
    stem = os.fsencode(target.stem)[:64].decode(errors="ignore")
    # Same suffix as the target: libraries that choose a format by extension still see it.
    suffix = target.suffix if len(os.fsencode(target.suffix)) <= 32 else ""
    handle, name = tempfile.mkstemp(prefix=f".{stem}.", suffix=f".tmp{suffix}", dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)  # mkstemp makes 0600; give the file the mode any new file would have
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def atomic_write(target: Path | str, data: bytes | str) -> None:
    """Replace `target` by `data` in one step."""
    with atomic_path(target) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)
