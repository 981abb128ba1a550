"""Copies between a rank's host memory and its device that do not stop the host.

`to_host` is the one function of training that waits for the device; a step calls it once.
"""

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hpcm_scale.data.stream import TrainStream
from hpcm_scale.training.noise import Noise
from hpcm_scale.training.rate_draws import RateDraws


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A tensor of the host on `device`, by a copy that is only ordered: from pinned memory."""
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    pinned = tensor if tensor.is_pinned() else tensor.pin_memory()
    return pinned.to(device, non_blocking=True)


def to_host(values: Tensor) -> list[float]:
    """The numbers of a vector, once the device has worked them out: the host waits."""
    return values.tolist()


class MicroBatch(NamedTuple):
    """What one forward pass takes, on the device."""

    crops: Tensor
    """(b, 3, H, W) uint8."""
    noise: tuple[Tensor, Tensor]
    """Of y and z, float32."""
    places: Tensor | None
    """(b,), of each crop among the network's rates."""


class Batch(NamedTuple):
    """This rank's part of one optimizer step's batch."""

    step: int
    """Steps taken before it."""
    epoch: int
    micro_batches: list[MicroBatch]
    position: dict[str, int]
    """Of the stream's state: where it goes on after this batch."""


class DeviceBatches:
    """The batches of a stream, copied to the device while the step before them runs.

    Args:
        micro: crops of one forward pass.
        last: step after which no batch is fetched ahead.
        ahead: whether `prefetch` does anything; on a GPU if not given. On a CPU there is nothing to
            run beside it.
    """

    def __init__(
        self,
        stream: TrainStream,
        noise: Noise,
        draws: RateDraws,
        device: torch.device,
        micro: int,
        last: int,
        ahead: bool | None = None,
    ) -> None:
        self.stream, self.noise, self.draws, self.device = stream, noise, draws, device
        self.micro, self.last = micro, last
        self.waited = 0.0
        """Seconds so far in which neither host nor device had anything to do but wait for data; one
        that looks for itself sets it back."""
        self._source: Iterator[dict[str, Any]] | None = None
        self._ahead: Batch | None = None
        cuda = device.type == "cuda"
        self.ahead = cuda if ahead is None else ahead
        self._copies = torch.cuda.Stream(device) if cuda else None
        """What copies run in, beside the network's own operations."""

    def prefetch(self) -> None:
        """Fetch the batch after the one being computed; best called once its work is ordered."""
        if not self.ahead or self._ahead is not None or self.stream.step >= self.last:
            return
        ordered = torch.cuda.current_stream(self.device).record_event() if self._copies else None
        before = self.waited
        self._ahead = self._fetch()
        if ordered is not None and not ordered.query():  # the device was busy all the while
            self.waited = before

    def next(self) -> Batch:
        """The next batch, whose tensors the current stream may use."""
        batch, self._ahead = self._ahead or self._fetch(), None
        if self._copies is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(self._copies)
            for part in batch.micro_batches:
                for tensor in (part.crops, *part.noise, part.places):
                    if tensor is not None:
                        tensor.record_stream(current)
        return batch

    def _fetch(self) -> Batch:
        if self._source is None:
            self._source = iter(self.stream)
        start = time.monotonic()
        host = next(self._source)
        self.waited += time.monotonic() - start
        crops = host["crop"]
        starts = range(0, len(crops), self.micro)
        with torch.cuda.stream(self._copies):  # of no effect without one
            parts = [
                self._part(host["step"], crops, range(s, min(s + self.micro, len(crops))))
                for s in starts
            ]
        position = {"step": self.stream.step, "samples": self.stream.consumed}
        return Batch(host["step"], host["epoch"], parts, position)

    def _part(self, step: int, crops: Tensor, rows: range) -> MicroBatch:
        part = crops[rows.start : rows.stop]
        y, z = (to_device(noise, self.device) for noise in self.noise(step, rows))
        places = self.draws(step, rows)
        if places is not None:
            places = to_device(places, self.device)
        return MicroBatch(to_device(part, self.device), (y, z), places)
