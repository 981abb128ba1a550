"""A torch profiler trace of some steps, on request."""

from types import TracebackType
from typing import Self

import torch

from hpcm_scale.config import RunConfig


class Profile:
    """Records the steps that `RunConfig.profile` names, on rank 0, for chrome://tracing."""

    def __init__(self, run: RunConfig, rank: int) -> None:
        first, count = run.profile or (0, 0)
        self.steps = range(first, first + count) if rank == 0 else range(0)
        self.path = run.folder / "profile" / f"steps-{first}-{first + count - 1}.json"
        self.trace: torch.profiler.profile | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType
    ) -> None:
        self._write()

    def at(self, step: int) -> None:
        """Step `step` (from 0) of the run is about to begin."""
        if step in self.steps and self.trace is None:
            self.trace = torch.profiler.profile(record_shapes=True)
            self.trace.start()
        elif step not in self.steps:
            self._write()

    def _write(self) -> None:
        if self.trace is not None:
            self.trace.stop()
            self.path.parent.mkdir(exist_ok=True)
            self.trace.export_chrome_trace(str(self.path))
            self.trace = None
