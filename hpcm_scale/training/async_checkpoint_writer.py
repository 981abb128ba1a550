"""Writes the files of a checkpoint, in the background, with a checksum of each."""

import os
import threading
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine
from safetensors.torch import save
from torch import Tensor


class CheckpointWriter(CheckpointEngine):
    """Writer that DeepSpeed hands its state dictionaries to, in place of its own.

    In the background mode a state is copied to host memory, and the copies are written by a
    thread while training goes on. One checkpoint at a time: `wait` before the next.
    """

    def __init__(self, background: bool) -> None:
        super().__init__()
        self.background = background
        self.files: dict[str, dict[str, int]] = {}
        """Size and CRC-32 of each file written since `start`, by path in the checkpoint."""
        self.error: Exception | None = None
        self._jobs: list[Callable[[], None]] = []
        self._thread: threading.Thread | None = None
        self._folder = Path()

    def start(self, folder: Path) -> None:
        """Begin a checkpoint in `folder`; nothing is written yet in the background mode."""
        self.wait()
        self.files, self.error, self._jobs, self._folder = {}, None, [], folder

    def finish(self) -> None:
        """All states have been handed over."""
        if self.background:
            self._thread = threading.Thread(target=self._run, name="checkpoint", daemon=True)
            self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether the thread is still writing."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self) -> None:
        """Until all is written, or an `error` has ended it."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def create(self, info: Any) -> None:
        """DeepSpeed announces a checkpoint; `start` has done what there is to do."""

    def save(self, state_dict: Any, path: str) -> None:
        """Write a state dictionary as a torch file."""
        self._do(state_dict, lambda state: self._write(Path(path), _torch_save(state)))

    def save_tensors(
        self, path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
    ) -> None:
        """Write a safetensors file."""
        self._do(
            dict(tensors),
            lambda state: self._write(path, lambda f: f.write(save(state, dict(metadata)))),
        )

    def load(self, path: str, map_location: Any = None) -> Any:
        """A state dictionary of a checkpoint of ours; it unpickles."""
        return torch.load(path, map_location=map_location, weights_only=False)

    def commit(self, tag: Any) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        """DeepSpeed has handed all of its states over."""
        return True

    def _do(self, state: Any, write: Callable[[Any], None]) -> None:
        if self.background:
            copied = _copy(state)
            self._jobs.append(lambda: write(copied))
            return
        self._attempt(lambda: write(state))

    def _run(self) -> None:
        for job in self._jobs:
            self._attempt(job)
        self._jobs = []

    def _attempt(self, job: Callable[[], None]) -> None:
        if self.error is None:
            try:
                job()
            except Exception as error:  # noqa: BLE001 - whatever it is, the file is not whole
                self.error = error

    def _write(self, path: Path, write: Callable[["_Summed"], object]) -> None:
        with open(path, "wb") as file:
            summed = _Summed(file)
            write(summed)
            file.flush()
            os.fsync(file.fileno())
        name = str(path.relative_to(self._folder))
        self.files[name] = {"bytes": summed.size, "crc32": summed.crc}


class _Summed:
    """A file that adds up what is written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.size, self.crc = file, 0, 0

    def write(self, data: Any) -> int:
        written = self.file.write(data)
        self.size += written
        self.crc = zlib.crc32(data, self.crc)
        return written

    def flush(self) -> None:
        self.file.flush()


def _copy(state: Any) -> Any:
    """`state` with every tensor copied to host memory."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return type(state)((key, _copy(value)) for key, value in state.items())
    if type(state) in (list, tuple):
        return type(state)(map(_copy, state))
    return state


def _torch_save(state: Any) -> Callable[[Any], None]:
    """Function that writes `state` to a file as torch does."""
    return lambda file: torch.save(state, file)
