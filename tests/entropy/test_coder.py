import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcm_scale.entropy import ans, coder
from hpcm_scale.entropy.coder import LARGEST_SYMBOL, AnsDecoder, AnsEncoder, SymbolModels
from hpcm_scale.entropy.table_building import GENERALIZED, y_tables
from hpcm_scale.errors import BitstreamError, DataError

TABLES = y_tables(GENERALIZED)
MODELS = SymbolModels(TABLES)


def _coded(groups: list[tuple[np.ndarray, np.ndarray]]) -> bytes:
    pusher = AnsEncoder()
    for symbols, table in reversed(groups):
        pusher.push(symbols, table, MODELS)
    return pusher.payload()


def _group(values: list[int], tables: list[int]) -> tuple[np.ndarray, np.ndarray]:
    return np.array(values, np.int32), np.array(tables, np.uint8)


@st.composite
def _groups(draw: st.DrawFn) -> list[tuple[np.ndarray, np.ndarray]]:
    value = st.one_of(
        st.integers(-3, 3),
        st.integers(-(2**15), 2**15 - 1),
        st.integers(-LARGEST_SYMBOL, LARGEST_SYMBOL),
    )
    pair = st.tuples(value, st.integers(0, GENERALIZED.count - 1))
    groups = draw(st.lists(st.lists(pair, max_size=40), max_size=5))
    return [_group([v for v, _ in g], [t for _, t in g]) for g in groups]


@given(_groups())
@settings(max_examples=200, deadline=None)
def test_any_symbols_come_back_and_empty_the_stack(
    groups: list[tuple[np.ndarray, np.ndarray]],
) -> None:
    puller = AnsDecoder(_coded(groups))
    for symbols, table in groups:
        assert np.array_equal(puller.pull(table, MODELS), symbols)
    assert puller.is_empty()


def test_every_int16_comes_back_from_every_table() -> None:
    values = np.arange(-(2**15), 2**15, dtype=np.int32)
    for t in (0, 30, GENERALIZED.count - 1):
        table = np.full(values.size, t, np.uint8)
        puller = AnsDecoder(_coded([(values, table)]))
        assert np.array_equal(puller.pull(table, MODELS), values)
        assert puller.is_empty()


def _rans(intervals: list[tuple[int, int]]) -> bytes:
    """FORMAT.md's coder in Python integers, of (frequency, sum below), last pulled first."""
    state, words = 0, []
    for frequency, below in intervals:
        if state >= frequency << 40:
            words.append(state & 0xFFFFFFFF)
            state >>= 32
        state = (state // frequency << 24) + below + state % frequency
    words += [state & 0xFFFFFFFF, state >> 32]
    return np.array(words, "<u4").tobytes().rstrip(b"\0")


def _uniform(count: int, value: int) -> tuple[int, int]:
    share = 2**24 // count
    return (share if value < count - 1 else 2**24 - share * value), share * value


def test_the_payload_is_rans_of_the_frozen_frequencies() -> None:
    """An independent coder, from the integers in the tables and FORMAT.md, gives the bytes."""
    rng = np.random.default_rng(0)
    table = rng.integers(0, GENERALIZED.count, 3000).astype(np.uint8)
    symbols = (rng.laplace(0, 0.8, 3000) * GENERALIZED.levels()[table]).round().astype(np.int32)
    symbols[::100] *= 1000

    pulled, counts, octets = [], [], []
    for i in sorted(range(3000), key=lambda i: table[i]):
        start, end = TABLES.starts[table[i] : table[i] + 2]
        frequencies, r = TABLES.frequencies[start:end].tolist(), int(TABLES.ranges[table[i]])
        s = int(symbols[i])
        position = s + r
        if abs(s) > r:
            position = 2 * r + 1
            u = 2 * (abs(s) - r - 1) + (s < 0)
            value = u.to_bytes(4, "little").rstrip(b"\0")
            counts.append(_uniform(5, len(value)))
            octets += [_uniform(256, octet) for octet in value]
        pulled.append((frequencies[position], sum(frequencies[:position])))
    assert len(counts) > 20
    assert _coded([(symbols, table)]) == _rans((pulled + counts + octets)[::-1])


def test_a_payload_is_as_long_as_the_information_in_it() -> None:
    rng = np.random.default_rng(1)
    table = rng.integers(0, GENERALIZED.count, 200_000).astype(np.uint8)
    symbols = (
        (rng.laplace(0, 0.7, table.size) * GENERALIZED.levels()[table]).round().astype(np.int32)
    )
    bits = MODELS.bits(symbols, table)
    payload = _coded([(symbols, table)])
    escapes = int((np.abs(symbols) > TABLES.ranges[table]).sum())
    assert escapes > 0
    assert bits <= 8 * len(payload) + 8
    assert 8 * len(payload) <= 1.0001 * bits + 64 + 35 * escapes


def test_no_payload_is_shorter_than_its_likeliest_symbols() -> None:
    """What refuses a header that claims more pixels than its payload can hold."""
    for count in (1, 1000, 1_000_000):
        table = np.zeros(count, np.uint8)
        payload = _coded([(np.zeros(count, np.int32), table)])
        assert count * TABLES.least_bits()[0] <= 8 * len(payload) + 64


def test_a_symbol_beyond_the_escapes_is_refused() -> None:
    for value in (LARGEST_SYMBOL + 1, -LARGEST_SYMBOL - 1, -(2**31)):
        with pytest.raises(DataError, match="cannot be coded"):
            AnsEncoder().push(*_group([value], [3]), MODELS)


def test_a_payload_no_encoder_writes_is_refused() -> None:
    with pytest.raises(BitstreamError, match="zero byte"):
        AnsDecoder(b"\1\0")


@pytest.mark.parametrize(("octets", "fits"), [([5], True), ([], True), ([5, 0], False)])
def test_a_value_has_its_shortest_form(octets: list[int], fits: bool) -> None:
    pusher = ans.AnsCoder()
    pusher.encode_reverse(np.array(octets, int), ans.uniform(256))
    pusher.encode_reverse(np.array([len(octets)]), ans.uniform(5))
    start, end = TABLES.starts[:2]
    r = TABLES.ranges[0]
    pusher.encode_reverse(np.array([2 * r + 1]), ans.Model(TABLES.frequencies[start:end]))
    payload = pusher.get_compressed().astype("<u4").tobytes().rstrip(b"\0")
    table = np.zeros(1, np.uint8)
    if fits:
        value = sum(octets)  # of a byte at most
        expected = (r + 1 + value // 2) * (-1) ** value
        assert AnsDecoder(payload).pull(table, MODELS).tolist() == [expected]
    else:
        with pytest.raises(BitstreamError, match="shortest form"):
            AnsDecoder(payload).pull(table, MODELS)


@given(st.binary(max_size=200).filter(lambda data: not data.endswith(b"\0")))
@settings(deadline=None)
def test_any_bytes_decode_to_something_or_are_refused(data: bytes) -> None:
    puller = AnsDecoder(data)
    table = np.arange(120, dtype=np.uint8) % GENERALIZED.count
    try:
        symbols = puller.pull(table, MODELS)
    except BitstreamError:
        return
    assert np.abs(symbols).max() <= LARGEST_SYMBOL


@contextmanager
def _in_python() -> Iterator[SymbolModels]:
    """The coder as it is where constriction is not, and its own models."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coder, "_AnsCoder", ans.AnsCoder)
        patch.setattr(coder, "_categorical", ans.Model)
        patch.setattr(coder, "_BYTES", ans.uniform(256))
        patch.setattr(coder, "_COUNTS", ans.uniform(5))
        yield SymbolModels(TABLES)


@given(_groups(), st.binary(max_size=60).filter(lambda data: not data.endswith(b"\0")))
@settings(max_examples=100, deadline=None)
def test_the_coder_in_python_is_the_compiled_one(
    groups: list[tuple[np.ndarray, np.ndarray]], data: bytes
) -> None:
    payload = _coded(groups)
    table = np.arange(120, dtype=np.uint8) % GENERALIZED.count

    def pulled(models: SymbolModels) -> tuple[list[int], bool] | str:
        puller = AnsDecoder(data)
        try:
            return puller.pull(table, models).tolist(), puller.is_empty()
        except BitstreamError as error:
            return str(error)

    of_any_bytes = pulled(MODELS)
    with _in_python() as models:
        pusher = AnsEncoder()
        for symbols, tables in reversed(groups):
            pusher.push(symbols, tables, models)
        assert pusher.payload() == payload
        puller = AnsDecoder(payload)
        for symbols, tables in groups:
            assert np.array_equal(puller.pull(tables, models), symbols)
        assert puller.is_empty()
        assert pulled(models) == of_any_bytes


def test_without_constriction_the_coder_is_the_one_in_python() -> None:
    code = (
        "import sys; sys.modules['constriction'] = None\n"
        "from hpcm_scale.entropy import ans, coder\n"
        "print(coder._AnsCoder is ans.AnsCoder)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr
