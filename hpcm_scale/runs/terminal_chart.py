"""Line charts of braille dots, for terminals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.text import Text

# Unicode numbers the dots of a braille character down its left column, then its right, but for the
# two lowest, which were added later.
_DOTS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])
_BLANK = 0x2800
MARK = "◆"


@dataclass(frozen=True)
class Series:
    """One line of a chart and marks on it."""

    name: str
    colour: str
    """As rich and matplotlib take it: #rrggbb."""
    line: tuple[np.ndarray, np.ndarray]
    """x and y, each (points,), finite, x not falling."""
    marks: tuple[np.ndarray, np.ndarray]
    """x and y of single points, each (points,), finite."""


def chart(series: Sequence[Series], width: int, height: int, log: bool, x_label: str) -> Text:
    """A chart of `width` columns and `height` rows; names are left to what is shown with it.

    Args:
        log: whether y is drawn by its logarithm; all y must be above 0 then.
    """
    x = np.concatenate([part for s in series for part in (s.line[0], s.marks[0])])
    y = np.concatenate([part for s in series for part in (s.line[1], s.marks[1])])
    x_low, x_high = _range(x)
    y_low, y_high = _range(np.log(y) if log else y)
    y_ticks = ticks(y_low, y_high, max(2, height // 6), log)
    labels = {}
    rows = height - 2
    for value in y_ticks:
        share = (y_high - (math.log(value) if log else value)) / (y_high - y_low)
        labels[min(rows - 1, int(share * rows))] = short(value)
    margin = max(map(len, labels.values()), default=1) + 1
    columns = max(8, width - margin - 1)
    dots = np.zeros((4 * rows, 2 * columns), bool)
    colours = np.full((rows, columns), "", dtype=object)
    marks: dict[tuple[int, int], str] = {}

    def place(xs: np.ndarray, ys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        across = (xs - x_low) / (x_high - x_low) * (2 * columns - 1)
        down = (y_high - (np.log(ys) if log else ys)) / (y_high - y_low) * (4 * rows - 1)
        return across, down

    for s in series:
        across, down = place(*_thinned(*s.line, 2 * columns))
        for i in range(max(1, len(across) - 1) if len(across) else 0):
            j = min(i + 1, len(across) - 1)
            count = 1 + int(max(abs(across[j] - across[i]), abs(down[j] - down[i])))
            columns_hit = np.linspace(across[i], across[j], count + 1).round().astype(int)
            rows_hit = np.linspace(down[i], down[j], count + 1).round().astype(int)
            dots[rows_hit, columns_hit] = True
            colours[rows_hit // 4, columns_hit // 2] = s.colour
        for across_one, down_one in zip(*place(*s.marks), strict=True):
            marks[round(down_one) // 4, round(across_one) // 2] = s.colour
    cells = (dots.reshape(rows, 4, columns, 2) * _DOTS[None, :, None, :]).sum((1, 3))
    text = Text(no_wrap=True)
    for r in range(rows):
        text.append(f"{labels.get(r, ''):>{margin - 1}} {'┤' if r in labels else '│'}")
        for c in range(columns):
            if (r, c) in marks:
                text.append(MARK, marks[r, c])
            else:
                dotted = chr(_BLANK + int(cells[r, c])) if cells[r, c] else " "
                text.append(dotted, colours[r, c])
        text.append("\n")
    text.append(" " * margin + "└")
    text.append_text(_x_axis(x_low, x_high, columns, x_label, " " * (margin + 1)))
    return text


def ticks(low: float, high: float, count: int, log: bool) -> list[float]:
    """Round values from `low` to `high`, which are logarithms if `log`: `count` or some more."""
    if log:
        exponents = range(math.floor(low / math.log(10)), math.ceil(high / math.log(10)) + 1)
        for digits in ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 5, 7)):
            found = [d * 10.0**e for e in exponents for d in digits]
            found = [value for value in found if low <= math.log(value) <= high]
            if len(found) >= min(count, 4):
                return found
        return ticks(math.exp(low), math.exp(high), count, False)
    size = (high - low) / count
    unit = 10.0 ** math.floor(math.log10(size))
    step = next(m * unit for m in (5, 2, 1) if m * unit <= size * 1.001)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def short(value: float) -> str:
    """A number in few characters: 0.25, 18, 1.2k, 3.4M, 5e+13."""
    size = abs(value)
    for limit, suffix in ((1e6, "M"), (1e3, "k")):
        if limit <= size < 1e9:
            return f"{value / limit:.4g}{suffix}"
    return f"{value:.4g}"


def _range(values: np.ndarray) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        around = 0.05 * abs(low) or 0.5
        return low - around, high + around
    return low, high


def _thinned(x: np.ndarray, y: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """At most about `count` points: means of neighbours."""
    group = -(-len(x) // count) if len(x) else 1
    if group == 1:
        return x, y
    starts = np.arange(0, len(x), group)
    sizes = np.diff(np.append(starts, len(x)))
    return np.add.reduceat(x, starts) / sizes, np.add.reduceat(y, starts) / sizes


def _x_axis(low: float, high: float, columns: int, label: str, margin: str) -> Text:
    """The axis with its ticks, then a line of their values and what they count."""
    axis, values = ["─"] * columns, [" "] * columns
    free = 0
    for value in ticks(low, high, max(2, columns // 24), False):
        at = round((value - low) / (high - low) * (columns - 1))
        axis[at] = "┴"
        written = short(value)
        start = min(max(0, at - len(written) // 2), columns - len(written))
        if start >= free:
            values[start : start + len(written)] = written
            free = start + len(written) + 1
    text = Text("".join(axis) + "\n" + margin + "".join(values).rstrip())
    return text.append(f"  {label}", "dim") if free + len(label) < columns else text
