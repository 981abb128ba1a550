import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcm_scale.codec.container import Container, Header, digest_seed, read, write
from hpcm_scale.errors import BitstreamError

SIDE = st.integers(1, 65535)


@st.composite
def _containers(draw: st.DrawFn) -> Container:
    width, height = draw(SIDE), draw(SIDE)
    tile = None
    if draw(st.booleans()):
        # Few enough tiles for a test to hold a payload of each.
        tile = tuple(64 * draw(st.integers(side // 256 + 1, 1024)) for side in (width, height))
    header = Header(
        draw(st.binary(min_size=4, max_size=4)),
        width,
        height,
        draw(st.integers(0, 2**32 - 1)),
        draw(st.booleans()),
        draw(st.booleans()),
        tile,
        draw(st.none() | st.integers(0, 65535)),
        draw(st.sampled_from([1, 1, 2, 3, 16])),
    )
    count = header.tiles * header.scales
    payloads = draw(st.lists(st.binary(max_size=30), min_size=count, max_size=count))
    section = st.none() | st.binary(max_size=200)
    return Container(header, tuple(payloads), draw(section), draw(section), draw(section))


def _resealed(data: bytes) -> bytes:
    return data[:-4] + zlib.crc32(data[:-4]).to_bytes(4, "little")


SAMPLE = write(
    Container(Header(b"abcd", 768, 512, 0x12345678), (b"payload",), b"icc", b"alpha", b"tags")
)


@given(_containers())
@settings(deadline=None)
def test_fields_come_back(container: Container) -> None:
    assert read(write(container)) == container


def test_a_kodak_header_takes_at_most_24_bytes() -> None:
    payload = bytes(200_000)  # 4 bits a pixel
    data = write(Container(Header(b"abcd", 768, 512, 0), (payload,)))
    assert len(data) - len(payload) <= 24


def test_every_flipped_bit_is_found() -> None:
    for bit in range(8 * len(SAMPLE)):
        damaged = bytearray(SAMPLE)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BitstreamError):
            read(bytes(damaged))


def test_every_truncation_and_extension_is_found() -> None:
    for length in range(len(SAMPLE)):
        with pytest.raises(BitstreamError, match=r"truncated|not a \.hpcm"):
            read(SAMPLE[:length])
    with pytest.raises(BitstreamError, match="3 bytes after its end"):
        read(SAMPLE + b"abc")


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (0, b"PNG", "not a .hpcm"),
        (3, b"\x02", "version 2"),
        (4, b"\xc0", "does not define"),
        (9, b"\x80\x00", "shortest form"),
        (9, b"\xff\xff\xff\xff\x7f", "width of"),
        (9, b"\xff\xff\xff\xff\xff", "longer than"),
        (9, b"\x00", "width of 0"),
    ],
)
def test_a_field_out_of_bounds_is_named(at: int, value: bytes, message: str) -> None:
    data = SAMPLE[:at] + value + SAMPLE[at + len(value) :]
    with pytest.raises(BitstreamError, match=message):
        read(_resealed(data))


def test_more_tiles_than_bytes_are_refused() -> None:
    header = Header(b"abcd", 65535, 65535, 0, tile=(64, 64))
    data = write(Container(header, (b"",)))
    with pytest.raises(BitstreamError, match="1048576 tiles in"):
        read(data)


@given(_containers(), st.data())
@settings(max_examples=300, deadline=None)
def test_resealed_damage_is_refused_or_seeds_another_digest(
    container: Container, data: st.DataObject
) -> None:
    """Damage whose checksum matches still cannot change a field the digest begins from."""
    whole = write(container)
    at = data.draw(st.integers(0, len(whole) - 5))
    damaged = bytearray(whole)
    damaged[at] ^= data.draw(st.integers(1, 255))
    try:
        found = read(_resealed(bytes(damaged)))
    except BitstreamError:
        return
    payloads_or_digest = (found.payloads, found.header.digest) != (
        container.payloads,
        container.header.digest,
    )
    seeds = [digest_seed(c) for c in (found, container)]
    assert payloads_or_digest or seeds[0] != seeds[1]
