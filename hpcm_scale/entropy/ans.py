"""The coder of FORMAT.md in Python, for machines that constriction has no wheel for.

A symbol takes about a third of a microsecond, six times as long as compiled code: a fifth of what
the network takes. `entropy/coder.py` uses it through the few names that it uses of constriction.
"""

from bisect import bisect_right
from itertools import accumulate

import numpy as np

from hpcm_scale.entropy.tables import PRECISION

_MASK = (1 << PRECISION) - 1
_WORD = 1 << 32


class Model:
    """Integer frequencies of the symbols 0, 1, ..., of sum 2^24: (S,)."""

    def __init__(self, frequencies: np.ndarray) -> None:
        self.frequencies: list[int] = frequencies.tolist()
        self.starts = [0, *accumulate(self.frequencies)][:-1]


def uniform(count: int) -> Model:
    """Symbols that share 2^24 evenly; the last takes what is left."""
    share = (1 << PRECISION) // count
    return Model(np.array([share] * (count - 1) + [(1 << PRECISION) - share * (count - 1)]))


class AnsCoder:
    """A stack of 32-bit words under a state of 64 bits.

    Args:
        words: (W,) uint32 of a payload, the last not 0; none to encode.
    """

    def __init__(self, words: np.ndarray | None = None) -> None:
        self._words: list[int] = [] if words is None else words.tolist()
        self._state = 0
        for _ in range(min(2, len(self._words))):
            self._state = self._state << 32 | self._words.pop()

    def encode_reverse(self, symbols: np.ndarray, model: Model) -> None:
        """Push symbols, the last first."""
        state, words = self._state, self._words
        frequencies, starts = model.frequencies, model.starts
        for symbol in symbols[::-1].tolist():
            frequency = frequencies[symbol]
            if state >> 40 >= frequency:
                words.append(state & _WORD - 1)
                state >>= 32
            quotient, rest = divmod(state, frequency)
            state = (quotient << PRECISION) + starts[symbol] + rest
        self._state = state

    def decode(self, model: Model, count: int) -> np.ndarray:
        """Pull so many symbols: (count,) int32."""
        state, words = self._state, self._words
        frequencies, starts = model.frequencies, model.starts
        out = []
        for _ in range(count):
            within = state & _MASK
            symbol = bisect_right(starts, within) - 1
            state = frequencies[symbol] * (state >> PRECISION) + within - starts[symbol]
            if state < _WORD and words:
                state = state << 32 | words.pop()
            out.append(symbol)
        self._state = state
        return np.array(out, np.int32)

    def get_compressed(self) -> np.ndarray:
        """The words of the stack and the state, (W,) uint32, none of 0 at the end."""
        words = [*self._words, self._state & _WORD - 1, self._state >> 32]
        while words and not words[-1]:
            words.pop()
        return np.array(words, np.uint32)

    def is_empty(self) -> bool:
        """Whether nothing is left to pull."""
        return not self._words and not self._state
