"""metrics.jsonl: one object a line, written and read while a run is going.

Rows have a kind ("train", "val", "val-" and a set's name, "skip", "spike"), the optimizer step
they were written after, the seconds the run had taken, and figures. A crash can tear the last
line; a resumed run drops the rows past its checkpoint and writes them again.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from hpcm_scale.errors import RunError
from hpcm_scale.files import atomic_write

FILE = "metrics.jsonl"
RENAMED = {"images": "crops", "images_per_second": "crops_per_second"}
"""Names that version 0.1 gave to figures."""


class MetricsLog:
    """The metrics.jsonl of a run folder, read from where it was read to before."""

    def __init__(self, folder: Path | str) -> None:
        self.path = Path(folder) / FILE
        self.rows: list[dict[str, Any]] = []
        """Rows up to the last whole line, as of the last `update`."""
        self.torn = False
        """Whether an unfinished line follows them: of a run that is writing, or crashed."""
        self._place = (0, 0)  # the file's number on its disk, bytes of it that have been read
        self._file: IO[str] | None = None

    def update(self) -> None:
        """Read what has been added, up to the last whole line.

        Raises:
            RunError: naming file and line, if a line is not a row.
        """
        try:
            with open(self.path, "rb") as file:
                status = self.path.stat()
                inode, offset = self._place
                # A resumed run drops the rows past its checkpoint by writing the file anew.
                if inode != status.st_ino or status.st_size < offset:
                    self.rows, offset = [], 0
                file.seek(offset)
                new = file.read()
        except FileNotFoundError:
            return
        except OSError as error:
            raise RunError(f"{self.path}: cannot be read ({error})") from None
        end = new.rfind(b"\n") + 1
        self.torn = bool(new[end:].strip())
        for line in new[:end].splitlines():
            if line.strip():
                self.rows.append(self._row(line, len(self.rows) + 1))
        self._place = (status.st_ino, offset + end)

    def _row(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            values: dict[str, Any] = json.loads(line)
            row = {RENAMED.get(key, key): value for key, value in values.items()}
            row["kind"], row["step"] = str(row["kind"]), int(row["step"])
        except KeyError as error:
            raise RunError(f"{self.path}: line {number} has no {error.args[0]}") from None
        except (ValueError, TypeError, AttributeError, RecursionError):
            raise RunError(f"{self.path}: line {number} is not a row of metrics") from None
        return row

    def rewind(self, step: int) -> float:
        """Drop the rows after `step`, and a torn line; returns the seconds the run had taken."""
        if not self.path.exists():
            return 0.0
        self.update()
        kept = [row for row in self.rows if row["step"] <= step]
        atomic_write(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        return max((row["seconds"] for row in kept), default=0.0)

    def append(self, kind: str, step: int, seconds: float, figures: Mapping[str, Any]) -> None:
        """Write a row.

        Raises:
            OSError: naming the file, if it cannot be written.
        """
        row = {"kind": kind, "step": step, "seconds": seconds, **figures}
        try:
            if self._file is None:
                self._file = open(self.path, "a", buffering=1)  # noqa: SIM115
            self._file.write(json.dumps(row) + "\n")
        except OSError as error:
            error.filename = str(self.path)  # which the message would not tell
            raise

    def close(self) -> None:
        """Write what is left to write."""
        if self._file is not None:
            self._file.close()
            self._file = None
