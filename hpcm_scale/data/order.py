"""The order in which a job consumes one split of a dataset: a pure function, at random access.

An epoch's sequence is the shards in a new order, laid end to end, begun at a random place, and
shuffled inside blocks of `shuffle_buffer`. It is cut into `streams` spans of equal length (to one
sample); every stream walks its span, so it reads its shards one after another. The job takes one
sample from each stream in turn. Position p counts samples over the whole run: epoch p // total.

Reader i of n (a worker of a rank) owns the positions p ≡ i (mod n). As n divides `streams`, those
are whole streams, so the readers share the streams out and never the order: neither n nor the batch
size appears in it. Nothing is dropped or repeated at the end of an epoch; the batch that
straddles two epochs takes the last samples of one and the first of the next.
"""

from collections.abc import Sequence

import numpy as np

from hpcm_scale.errors import DataError

SHARDS, BLOCK = 0, 1  # last or third part of a generator's key: its purpose


def owned_positions(start: int, stop: int, index: int, count: int) -> np.ndarray:
    """The positions in [start, stop) of reader `index` of `count`: those ≡ index (mod count)."""
    return np.arange(start + (index - start) % count, stop, count)


def require_divisor(streams: int, ranks: int, workers: int) -> None:
    """Check that `ranks` × `workers` readers can share the streams out.

    Raises:
        DataError: naming the products that can.
    """
    readers = ranks * max(workers, 1)
    if streams % readers:
        divisors = [n for n in range(1, streams + 1) if streams % n == 0]
        raise DataError(
            f"data.streams: {streams} streams cannot be shared by {ranks} ranks × "
            f"{max(workers, 1)} workers = {readers}; ranks × workers must be one of "
            f"{', '.join(map(str, divisors))}"
        )


class Order:
    """The sample at each position of a run.

    Args:
        shard_sizes: samples of each shard, in manifest order; samples are numbered along it.
        streams: canonical streams, S.
        seed: of the run.
        shuffle_buffer: samples in a shuffled block.

    Raises:
        DataError: if the split is empty.
    """

    def __init__(
        self, shard_sizes: Sequence[int] | np.ndarray, streams: int, seed: int, shuffle_buffer: int
    ) -> None:
        self.sizes = np.asarray(shard_sizes, dtype=np.int64)  # (shards,)
        self.first = np.cumsum(self.sizes) - self.sizes  # (shards,)  first sample of each
        self.total = int(self.sizes.sum())
        if self.total == 0:
            raise DataError("the split is empty: there is no sample to put in order")
        self.streams, self.seed, self.shuffle_buffer = streams, seed, shuffle_buffer
        length, longer = divmod(self.total, streams)
        s = np.arange(streams + 1)
        self.bounds = s * length + np.minimum(s, longer)  # (S+1,)  span of stream s
        self._epochs: dict[int, tuple[np.ndarray, np.ndarray, int]] = {}
        self._blocks: dict[tuple[int, int], np.ndarray] = {}

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The epoch and the sample of each position.

        Args:
            positions: (n,) int64.
        Returns:
            epochs (n,) and samples (n,), int64.
        """
        epochs, places = np.divmod(positions, self.total)
        rounds, streams = np.divmod(places, self.streams)
        lines = self.bounds[streams] + rounds  # (n,)  lines of the epoch's sequence
        samples = np.empty_like(lines)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            samples[chosen] = self.sequence(int(epoch), lines[chosen])
        return epochs, samples

    def sequence(self, epoch: int, lines: np.ndarray) -> np.ndarray:
        """The samples at `lines` (n,) of the epoch's sequence, before it is cut into streams."""
        shards, ends, rotation = self._epoch(epoch)
        blocks, within = np.divmod(lines, self.shuffle_buffer)
        shuffled = np.empty_like(lines)
        for block in np.unique(blocks):
            chosen = blocks == block
            shuffled[chosen] = self._block(epoch, int(block))[within[chosen]]
        slots = (shuffled + rotation) % self.total  # (n,)  along the shards laid end to end
        shard = np.searchsorted(ends, slots, side="right")  # (n,)  skips empty shards
        return slots - (ends[shard] - self.sizes[shards[shard]]) + self.first[shards[shard]]

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray, int]:
        """Shards in this epoch's order, where each ends, and where the sequence begins."""
        if epoch not in self._epochs:
            rng = np.random.default_rng((self.seed, epoch, SHARDS))
            shards = rng.permutation(len(self.sizes))  # (shards,)
            rotation = int(rng.integers(self.total))
            if len(self._epochs) >= 2:  # a batch straddles two epochs at most, unless tiny
                self._epochs.pop(next(iter(self._epochs)))
            self._epochs[epoch] = shards, np.cumsum(self.sizes[shards]), rotation
        return self._epochs[epoch]

    def _block(self, epoch: int, block: int) -> np.ndarray:
        """Lines of a block of the epoch's sequence, shuffled: (shuffle_buffer,) or fewer."""
        if (epoch, block) not in self._blocks:
            start = block * self.shuffle_buffer
            stop = min(start + self.shuffle_buffer, self.total)
            rng = np.random.default_rng((self.seed, epoch, BLOCK, block))
            # Each stream is inside one block at a time, and enters the next one once per buffer.
            if len(self._blocks) >= self.streams + 1:
                self._blocks.pop(next(iter(self._blocks)))
            self._blocks[epoch, block] = start + rng.permutation(stop - start)
        return self._blocks[epoch, block]
