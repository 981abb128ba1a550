"""Symbols to bytes and back: asymmetric numeral systems over frozen integer tables.

The coder is a stack: what is pushed last is pulled first, so an encoder pushes a picture's groups
of symbols in the reverse of the order in which the decoder needs them. Within a group, symbols are
sorted by table, so that each table in use is one call into compiled code.
"""

import zlib
from typing import Any

import numpy as np

from hpcm_scale.entropy import ans
from hpcm_scale.entropy.tables import PRECISION, TableSet
from hpcm_scale.errors import BitstreamError, DataError

LARGEST_SYMBOL = 2**30
"""Largest magnitude of a symbol: what an escape can hold."""

try:
    import constriction
except ModuleNotFoundError:  # it has no wheel for this machine
    _AnsCoder, _uniform, _categorical = ans.AnsCoder, ans.uniform, ans.Model
else:
    # Submodules of a compiled module are attributes of it, which type checkers cannot see.
    _stream: Any = constriction.stream  # pyright: ignore[reportAttributeAccessIssue]
    _AnsCoder, _uniform = _stream.stack.AnsCoder, _stream.model.Uniform

    def _categorical(frequencies: np.ndarray) -> Any:
        # constriction gives every symbol 1 and shares the rest of 2^24 in proportion. These
        # weights sum to exactly that rest, so the share of each is itself: no rounding.
        weights = (frequencies - 1).astype(np.float64)
        return _stream.model.Categorical(weights, perfect=False, lazy=False)


_BYTES = _uniform(256)
_COUNTS = _uniform(5)  # an escaped value takes 0 to 4 bytes


class SymbolModels:
    """The entropy models of one `TableSet`, made when a table is first used."""

    def __init__(self, tables: TableSet) -> None:
        self.ranges = tables.ranges
        self._starts = tables.starts
        self._frequencies = tables.frequencies
        self._bits = PRECISION - np.log2(tables.frequencies)
        self._models: dict[int, Any] = {}

    def __getitem__(self, table: int) -> Any:
        if table not in self._models:
            start, end = self._starts[table : table + 2]
            self._models[table] = _categorical(self._frequencies[start:end])
        return self._models[table]

    def bits(self, symbols: np.ndarray, table: np.ndarray) -> float:
        """Information content of `symbols` under these tables, escaped values' own bytes aside."""
        r = self.ranges[table]
        alphabet = np.where(np.abs(symbols) <= r, symbols + r, 2 * r + 1)
        return float(self._bits[self._starts[table] + alphabet].sum())


class AnsEncoder:
    """The encoder's end of the stack."""

    def __init__(self) -> None:
        self._coder = _AnsCoder()

    def push(self, symbols: np.ndarray, table: np.ndarray, models: SymbolModels) -> None:
        """Put one group of symbols on the stack.

        Args:
            symbols: (S,) int32, magnitudes up to 2^30.
            table: (S,) unsigned integers, the table of each symbol.
            models: the tables.

        Raises:
            DataError: if a symbol is beyond what an escape can hold.
        """
        if symbols.size == 0:
            return
        if max(int(symbols.max()), -int(symbols.min())) > LARGEST_SYMBOL:
            raise DataError(
                f"latents: a value beyond ±{LARGEST_SYMBOL} cannot be coded; the model has diverged"
            )
        order, used, starts = _by_table(table)
        symbols = symbols[order]
        r = models.ranges[table[order]]
        escaped = np.abs(symbols) > r
        self._push_escapes(symbols[escaped], r[escaped])
        alphabet = np.where(escaped, 2 * r + 1, symbols + r).astype(np.int32)
        for t, start, end in reversed(list(zip(used, starts[:-1], starts[1:], strict=True))):
            self._coder.encode_reverse(alphabet[start:end], models[t])

    def _push_escapes(self, symbols: np.ndarray, r: np.ndarray) -> None:
        if symbols.size == 0:
            return
        excess = np.abs(symbols).astype(np.int64) - r - 1
        value = (2 * excess + (symbols < 0)).astype("<u4")
        octets = value.view(np.uint8).reshape(-1, 4)
        # Bytes up to the last that is not zero.
        counts = 4 - np.argmax(np.c_[octets[:, ::-1] > 0, np.ones(len(octets), bool)], axis=1)
        kept = octets[np.arange(4) < counts[:, None]].astype(np.int32)
        if kept.size:
            self._coder.encode_reverse(kept, _BYTES)
        self._coder.encode_reverse(counts.astype(np.int32), _COUNTS)

    def payload(self) -> bytes:
        """Everything pushed, as bytes; the last is never zero."""
        return self._coder.get_compressed().astype("<u4").tobytes().rstrip(b"\0")


class AnsDecoder:
    """The decoder's end of the stack.

    Raises:
        BitstreamError: if `payload` is not one a `AnsEncoder` makes.
    """

    def __init__(self, payload: bytes) -> None:
        if payload.endswith(b"\0"):
            raise BitstreamError("payload ends in a zero byte, which no encoder writes")
        padded = payload + bytes(-len(payload) % 4)
        self._coder = _AnsCoder(np.frombuffer(padded, "<u4").astype(np.uint32))

    def pull(self, table: np.ndarray, models: SymbolModels) -> np.ndarray:
        """Take one group of symbols from the stack: the inverse of `AnsEncoder.push`.

        Args:
            table: (S,) unsigned integers, the table of each symbol.
            models: the tables.

        Returns:
            (S,) int32 symbols.
        """
        if table.size == 0:
            return np.empty(0, np.int32)
        order, used, starts = _by_table(table)
        alphabet = np.empty(table.size, np.int32)
        for t, start, end in zip(used, starts[:-1], starts[1:], strict=True):
            alphabet[start:end] = self._coder.decode(models[t], int(end - start))
        r = models.ranges[table[order]]
        symbols = alphabet - r
        escaped = alphabet == 2 * r + 1
        if escaped.any():
            symbols[escaped] = self._pull_escapes(r[escaped])
        unsorted = np.empty_like(symbols)
        unsorted[order] = symbols
        return unsorted

    def _pull_escapes(self, r: np.ndarray) -> np.ndarray:
        counts = self._coder.decode(_COUNTS, r.size)
        octets = np.zeros((r.size, 4), np.uint8)
        total = int(counts.sum())
        if total:
            octets[np.arange(4) < counts[:, None]] = self._coder.decode(_BYTES, total)
        if (octets[np.arange(r.size), counts - 1] == 0)[counts > 0].any():
            raise BitstreamError("payload holds a value that is not in its shortest form")
        value = octets.view("<u4").ravel().astype(np.int64)
        magnitude = value // 2 + r + 1
        if (magnitude > LARGEST_SYMBOL).any():
            raise BitstreamError(f"payload holds a symbol beyond ±{LARGEST_SYMBOL}")
        return np.where(value % 2, -magnitude, magnitude).astype(np.int32)

    def is_empty(self) -> bool:
        """Whether every bit of the payload has been used, as it is after decoding what made it."""
        return self._coder.is_empty()


class SymbolDigest:
    """CRC-32 of the symbols as little-endian int32, in the order they are decoded."""

    def __init__(self, seed: int) -> None:
        self.value = seed

    def update(self, symbols: np.ndarray) -> None:
        """Take in (S,) int32 symbols."""
        self.value = zlib.crc32(np.ascontiguousarray(symbols, "<i4").data, self.value)


def _by_table(table: np.ndarray) -> tuple[np.ndarray, list[int], np.ndarray]:
    """The stable order of symbols by table, the tables in use, and where each one's begin."""
    order = np.argsort(table, kind="stable")  # radix sort for 8 and 16 bit integers
    counts = np.bincount(table)
    used = np.flatnonzero(counts)
    return order, used.tolist(), np.concatenate([[0], np.cumsum(counts[used])])
