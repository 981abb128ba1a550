"""A third decoder: FORMAT.md in Python integers, EXACT.md by the int64 reference, and nothing else.

Of the package it imports nothing; what it knows of a model is what the model's file says.

It takes HPCM's portable files, in one dense walk a tile; slow, and of the kit's sizes only.
"""

import json
import math
import zlib
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from safetensors import safe_open

from tests.entropy.exact_reference import Reference
from tests.entropy.pixel_reference import pixels_of


class Fields(NamedTuple):
    """A file's fields that decoding needs."""

    identity: bytes
    width: int
    height: int
    grey: bool
    tile: tuple[int, int] | None
    rate: int | None
    scales: int
    digest: int
    pixel_digest: int | None
    seed: int
    rest: bytes
    """From the lengths to the checksum."""
    sections: int


def varint(data: bytes, at: int) -> tuple[int, int]:
    """The number that begins there, and where it ends."""
    value, shift = 0, 0
    while True:
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128:
            return value, at


def parse(data: bytes) -> Fields:
    assert data[:4] == b"HPC\x01"
    assert zlib.crc32(data[:-4]) == int.from_bytes(data[-4:], "little")
    at = 5

    def take(count: int) -> int:
        nonlocal at
        at += count
        return int.from_bytes(data[at - count : at], "little")

    def number() -> int:
        nonlocal at
        value, at = varint(data, at)
        return value

    flags = data[4]
    further = take(1) if flags >> 7 & 1 else 0
    scales = take(1) if further & 1 else 1
    identity = take(4).to_bytes(4, "little")
    width, height = number(), number()
    tile = (64 * number(), 64 * number()) if flags >> 4 & 1 else None
    rate = take(2) if flags >> 6 & 1 else None
    seed = zlib.crc32(data[:at])
    digest = take(4)
    pixels = take(4) if further & 2 else None
    sections = sum(flags >> bit & 1 for bit in (2, 3, 5))
    grey, rest = bool(flags & 2), data[at:-4]
    return Fields(
        identity, width, height, grey, tile, rate, scales, digest, pixels, seed, rest, sections
    )


def parts_of(fields: Fields, tiles: int) -> list[bytes]:
    """The sections and the payloads."""
    lengths, at = [], 0
    for _ in range(fields.sections + tiles * fields.scales):
        length, at = varint(fields.rest, at)
        lengths.append(length)
    ends = at + np.cumsum([0, *lengths])
    assert ends[-1] == len(fields.rest)
    return [fields.rest[a:b] for a, b in pairwise(ends)]


class Stack:
    """The coder's decoding end."""

    def __init__(self, payload: bytes) -> None:
        padded = payload + bytes(-len(payload) % 4)
        self.words = np.frombuffer(padded, "<u4").tolist()
        self.x = 0
        for _ in range(min(2, len(self.words))):
            self.x = self.x << 32 | self.words.pop()

    def pull(self, frequencies: list[int]) -> int:
        within, c, symbol = self.x & (1 << 24) - 1, 0, 0
        while within >= c + frequencies[symbol]:
            c += frequencies[symbol]
            symbol += 1
        self.x = frequencies[symbol] * (self.x >> 24) + within - c
        if self.x < 1 << 32 and self.words:
            self.x = self.x << 32 | self.words.pop()
        return symbol

    def group(self, tables: list[int], model: list[list[int]]) -> np.ndarray:
        """A group's symbols, in the order of `tables`."""
        out, escaped = np.zeros(len(tables), np.int64), []
        for i in sorted(range(len(tables)), key=lambda i: tables[i]):
            r = len(model[tables[i]]) // 2 - 1
            symbol = self.pull(model[tables[i]])
            out[i] = symbol - r
            if symbol == 2 * r + 1:
                escaped.append((i, r))
        fifth = [2**24 // 5] * 4
        counts = [self.pull([*fifth, 2**24 - sum(fifth)]) for _ in escaped]
        for (i, r), count in zip(escaped, counts, strict=True):
            u = sum(self.pull([2**16] * 256) << 8 * j for j in range(count))
            out[i] = (-1 if u % 2 else 1) * (u // 2 + r + 1)
        return out


def tables_of(ranges: np.ndarray, frequencies: np.ndarray) -> list[list[int]]:
    ends = np.cumsum([0, *(2 * ranges + 2)])
    return [frequencies[a:b].tolist() for a, b in pairwise(ends)]


def parameters_of(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The network's parameters in float32, by name; a byte is worth its first index's unit."""
    found = {}
    for name, value in tensors.items():
        if not name.startswith("coding.") and not name.endswith(".unit"):
            found[name] = value.astype(np.float32)
            if value.dtype == np.int8:
                unit = tensors[f"{name}.unit"]
                found[name] *= unit.reshape(-1, *[1] * (value.ndim - 1))
    return found


def config_of(text: str) -> SimpleNamespace:
    """A `config`, and what one older than a field lacks."""
    fields = {"rates": [], "context_channels": None} | json.loads(text)
    assert fields["architecture"] == "hpcm"
    return SimpleNamespace(**fields)


def identity_of(metadata: dict[str, str], tensors: dict[str, np.ndarray]) -> bytes:
    """SHA-256 of what decides how a model codes."""
    tables = sha256()
    for part in ("y.boundaries", "y.ranges", "y.frequencies", "z.ranges", "z.frequencies"):
        values = tensors[f"coding.{part}"]
        tables.update(f"{part} {values.shape} ".encode())
        tables.update(values.astype(values.dtype.newbyteorder("<")).tobytes())
    whole = sha256(metadata["config"].encode())
    for name, values in sorted(parameters_of(tensors).items()):
        line = f"{name} {values.shape} {sha256(values.astype('<f4').tobytes()).hexdigest()}\n"
        whole.update(line.encode())
    whole.update(tables.hexdigest().encode())
    whole.update(metadata.get("arithmetic", "").encode())
    return whole.digest()


class Model:
    """A model file's parts."""

    def __init__(self, path: Path) -> None:
        with safe_open(path, "np") as stored:
            tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
            metadata: dict[str, Any] = stored.metadata()
        self.config = config_of(metadata["config"])
        self.identity = identity_of(metadata, tensors)
        arithmetic = json.loads(metadata.get("arithmetic", '{"version": 1}'))
        wide = frozenset(arithmetic["wide"]) if arithmetic["version"] == 2 else None
        self.parameters = parameters_of(tensors)
        self.y, self.z = (
            tables_of(tensors[f"coding.{kind}.ranges"], tensors[f"coding.{kind}.frequencies"])
            for kind in "yz"
        )
        self.boundaries = np.floor(1024 * tensors["coding.y.boundaries"].astype(np.float64))
        self.walk = Reference(self.parameters, self.config, wide)

    def multiple(self) -> int:
        """What the sides of a canvas are multiples of."""
        multiple, config = 64, self.config
        for s, scale in enumerate(self.walk.schedule.scales):
            g = (64, 32, 16)[s]
            multiple = math.lcm(multiple, g * len(scale.steps[0][0]))
            if config.fusion == "attention":
                pixels = g if config.hierarchical else 16
                multiple = math.lcm(multiple, pixels * config.windows[s])
        return multiple

    def coded(self, k: int, shape: tuple[int, ...], rows: int, columns: int) -> np.ndarray:
        """Which entries of a step's dense tensor are of the first rows and columns of latents."""
        s, step = self.walk.schedule.steps[k]
        size = self.config.latent_channels // self.walk.schedule.scales[s].groups
        mask = np.zeros(shape, bool)
        for c, i, j in np.ndindex(shape):
            table = step[c // size]
            group = table[i % len(table)][j % len(table)]
            row, column = self.walk.on_largest(s, group * size + c % size, i, j)
            mask[c, i, j] = row < rows and column < columns
        return mask

    def tile(
        self,
        payloads: list[bytes],
        sides: tuple[int, int],
        shown: tuple[int, int],
        seed: int,
    ) -> tuple[np.ndarray, int]:
        """ŷ (M, h, w) of a tile, and the digest that goes on from `seed`.

        Args:
            sides: of the tile in pixels; `shown` those of its part of the picture.
        """
        stacks = [Stack(payload) for payload in payloads]

        def taken(stack: Stack, tables: list[int], model: list[list[int]]) -> np.ndarray:
            nonlocal seed
            symbols = stack.group(tables, model)
            seed = zlib.crc32(symbols.astype("<i4").tobytes(), seed)
            return symbols

        n = self.config.hyper_channels
        rows, columns = (-(-side // 64) for side in shown)
        channels = [c for c in range(n) for _ in range(rows * columns)]
        z_symbols = np.zeros((n, sides[0] // 64, sides[1] // 64), np.int64)
        inside = taken(stacks[0], channels, self.z)
        z_symbols[:, :rows, :columns] = inside.reshape(n, rows, columns)

        def code(k: int, sigma: np.ndarray, mu: np.ndarray) -> np.ndarray:
            mask = self.coded(k, sigma.shape, -(-shown[0] // 16), -(-shown[1] // 16))
            index = (self.boundaries < sigma[mask][:, None]).sum(axis=1)
            symbols = np.zeros(sigma.shape, np.int64)
            s = self.walk.schedule.steps[k][0]
            symbols[mask] = taken(stacks[s if len(stacks) > 1 else 0], index.tolist(), self.y)
            return symbols

        y_hat = self.walk.walk(z_symbols, code)
        assert all(not stack.words and not stack.x for stack in stacks)
        return y_hat, seed


def decoded(data: bytes, path: Path) -> np.ndarray | None:
    """The pixels of a file, if they are exact; the digest of the symbols is checked in any case."""
    model, fields = Model(path), parse(data)
    assert model.identity.startswith(fields.identity)
    multiple = model.multiple()
    height, width = (-(-side // multiple) * multiple for side in (fields.height, fields.width))
    tile_width, tile_height = fields.tile or (width, height)
    corners = [
        (top, left) for top in range(0, height, tile_height) for left in range(0, width, tile_width)
    ]
    parts = parts_of(fields, len(corners))
    digest = fields.seed
    for section in parts[: fields.sections]:
        digest = zlib.crc32(section, digest)
    payloads = parts[fields.sections :]
    canvas = np.zeros((model.config.latent_channels, height // 16, width // 16), np.int64)
    for t, (top, left) in enumerate(corners):
        sides = (min(tile_height, height - top), min(tile_width, width - left))
        shown = (min(sides[0], fields.height - top), min(sides[1], fields.width - left))
        part, digest = model.tile(payloads[t :: len(corners)], sides, shown, digest)
        _, h, w = part.shape
        canvas[:, top // 16 : top // 16 + h, left // 16 : left // 16 + w] = part
    assert digest == fields.digest
    if fields.pixel_digest is None:
        return None
    seen = canvas[:, : -(-fields.height // 16), : -(-fields.width // 16)]
    rounded = seen.astype(np.float32).astype(np.int64)
    pixels = pixels_of(model.parameters, model.config, rounded, fields.rate, fields.grey)
    pixels = np.ascontiguousarray(pixels[: fields.height, : fields.width])
    assert zlib.crc32(pixels.tobytes()) == fields.pixel_digest
    return pixels
