"""Tables of runs, one a row or a row a step, as spreadsheets and trackers keep or export them.

Columns are named by their reader or known by the names that are usual for them.
"""

import csv
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hpcm_scale.errors import RunError, one_line, printable
from hpcm_scale.runs.cells import number_of, plain_name
from hpcm_scale.runs.histories import row_a_run
from hpcm_scale.runs.nested import flat
from hpcm_scale.runs.tracker_folders import is_tracker_folder, rows_of

SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet")
LARGEST_FILE = 1 << 30
USUAL = {
    "n": "params parameters nparams numparams nparameters numparameters totalparams "
    "totalparameters modelsize modelparams nonembeddingparams size n",
    "d": "tokens ntokens numtokens traintokens trainingtokens totaltokens crops images samples "
    "trainsamples examples datasize d",
    "c": "flops flop trainflops trainingflops trainingflop trainflop totalflops compute c",
    "batch": "batch batchsize globalbatch globalbatchsize tokensperbatch cropsperbatch",
    "lr": "lr learningrate peaklr maxlr baselr peaklearningrate maxlearningrate",
    "loss": "valloss validationloss evalloss evalvalloss testloss lossval valceloss finalloss "
    "loss ce l",
    "group": "family architecture arch group",
}
"""Usual names of columns, letters and digits of them in lower case; the first found is taken."""
OPTIONAL = ("batch", "lr")
"""Parts that no law needs of a row."""
FINISHED = {"finished", "completed", "done", "success"}
"""States of a tracker's run that has ended well."""
CONDITIONS = re.compile(
    r"batch|valset|valdata|validationset|dataset|^data$|crop|seqlen|contextlength|tokenizer|vocab"
    r"|ema|average|schedule|warmup|decay|init|optimizer|parametrization"
)
"""Columns of what should not differ between the runs of a law."""


@dataclass(frozen=True)
class Columns:
    """Names of a table's columns; None: guessed, or, for d, c, batch, lr and group, not there."""

    n: str | None = None
    """Parameters."""
    d: str | None = None
    """Data seen: tokens, crops or images."""
    c: str | None = None
    """Training FLOPs."""
    loss: str | None = None
    batch: str | None = None
    """Data of a step, in the unit of d."""
    lr: str | None = None
    """Learning rate: of runs that differ in it alone, the best counts."""
    group: str | None = None
    """Family of the run: each has a law of its own."""


@dataclass(frozen=True)
class RunTable:
    """Finished runs of one family."""

    label: str
    unit: str
    """Unit of D, as its column is named."""
    names: list[str]
    n: np.ndarray | None
    """(runs,) parameters."""
    d: np.ndarray | None
    """(runs,) data seen."""
    c: np.ndarray | None
    """(runs,) training FLOPs."""
    loss: np.ndarray
    """(runs,) final losses."""
    differing: list[str]
    """Columns of conditions that differ between these runs."""
    batch: np.ndarray | None = None
    """(runs,) data of a step."""
    lr: np.ndarray | None = None
    """(runs,) learning rates."""

    def __len__(self) -> int:
        return len(self.loss)

    def kept(self, rows: np.ndarray) -> "RunTable":
        """Some of the runs, by number or mask."""
        parts = {
            part: None if (x := getattr(self, part)) is None else x[rows]
            for part in ("n", "d", "c", "batch", "lr")
        }
        names = np.array(self.names, object)[rows].tolist()
        return replace(self, names=names, loss=self.loss[rows], **parts)


def is_table(path: Path | str) -> bool:
    """Whether a path is named like a table of runs, or a folder of a tracker's runs."""
    return Path(path).suffix.lower() in SUFFIXES or is_tracker_folder(path)


def read_tables(
    paths: Iterable[Path | str],
    columns: Columns,
    drop_highest: int = 0,
    step: float | None = None,
) -> tuple[list[RunTable], list[str]]:
    """The families of runs in some files, and what their reader should know of how they were read.

    Args:
        drop_highest: so many runs of highest loss are left out, of all files together.
        step: of histories, which have a row a step, the last row up to this one counts.

    Raises:
        RunError: if a file cannot be read, a column is not there or cannot be told, or no run is
            left.
    """
    records, notes = [], []
    for path in map(Path, paths):
        rows = _rows(path)
        found = _found(rows, columns, str(path))
        notes.append(f"{path}: {_told(found)}")
        rows, said = row_a_run(rows, found, str(path), step)
        notes += [said] if said else []
        records += _records(rows, found, path, notes)
    if not records:
        raise RunError("no run to fit: no row of the tables has what a law needs")
    records = _without_copies(records, notes)
    if drop_highest:
        records.sort(key=lambda record: record["loss"])
        if drop_highest >= len(records):
            raise RunError(f"--drop-highest: {drop_highest} of {len(records)} runs leaves none")
        least = records[-drop_highest]["loss"]
        notes.append(f"left out: the {drop_highest} runs of highest loss, {least:.4g} and above")
        records = records[:-drop_highest]
    groups: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        groups.setdefault(record["group"], []).append(record)
    return [_table(label, group) for label, group in groups.items()], notes


def _rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file or tracker's folder, nested fields under dotted names."""
    if path.is_dir():
        return rows_of(path)
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise RunError(f"{path}: is over 1 GiB, which no table of runs is")
        if path.suffix.lower() == ".parquet":
            rows = _parquet(path)
        else:
            text = path.read_text(encoding="utf-8-sig")
            rows = _json(text) if "json" in path.suffix.lower() else _separated(text)
    except (OSError, ValueError, csv.Error, RecursionError) as error:
        raise RunError(f"{path}: is not a table that can be read ({one_line(error)})") from None
    if not rows:
        raise RunError(f"{path}: has no rows")
    return rows


def _separated(text: str) -> list[dict[str, Any]]:
    """Rows of a file with a line of names, separated by comma, semicolon or tab."""
    head = text.partition("\n")[0]
    separator = max(",;\t", key=head.count)
    rows = csv.DictReader(text.splitlines(), delimiter=separator)
    return [{key: value for key, value in row.items() if isinstance(key, str)} for row in rows]


def _json(text: str) -> list[dict[str, Any]]:
    """Rows of a list of objects, of a list under any name, or of one object a line."""
    try:
        values = json.loads(text)
    except ValueError:
        values = [json.loads(line) for line in text.splitlines() if line.strip()]
    if isinstance(values, dict):
        lists = [value for value in values.values() if isinstance(value, list)]
        values = lists[0] if len(lists) == 1 else [values]
    if not isinstance(values, list) or not all(isinstance(row, dict) for row in values):
        raise ValueError("not a list of objects")
    return [dict(flat(row)) for row in values]


def _parquet(path: Path) -> list[dict[str, Any]]:
    from pyarrow import ArrowException, parquet

    try:
        return [dict(flat(row)) for row in parquet.read_table(path).to_pylist()]
    except ArrowException as error:
        raise ValueError(str(error)) from None


def _found(rows: Sequence[Mapping[str, Any]], columns: Columns, source: str) -> dict[str, str]:
    """The column of each part that the table has."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    plain: dict[str, str] = {}
    for name in names:
        plain.setdefault(plain_name(name), name)
        if "train" not in plain_name(name) or "tokens" in plain_name(
            name
        ):  # train/loss is not the loss
            plain.setdefault(plain_name(name.rpartition(".")[2].rpartition("/")[2]), name)
    found = {}
    for part, usual in USUAL.items():
        asked = getattr(columns, part)
        if asked is not None:
            if asked not in names:
                shown = printable(", ".join(names))[:200]
                raise RunError(f"{source}: --{part}: no column {asked!r}; it has {shown}")
            found[part] = asked
        elif guess := next((plain[name] for name in usual.split() if name in plain), None):
            found[part] = guess
    shown = printable(", ".join(names))[:200]
    if "loss" not in found:
        raise RunError(f"{source}: no column looks like a loss; name it by --loss (it has {shown})")
    if "n" not in found and "c" not in found:
        raise RunError(
            f"{source}: no column looks like parameters or FLOPs; name one by --n or --c "
            f"(it has {shown})"
        )
    return found


def _told(found: Mapping[str, str]) -> str:
    symbols = {
        "n": "N",
        "d": "D",
        "c": "C",
        "loss": "loss",
        "batch": "batch",
        "lr": "learning rate",
        "group": "family",
    }
    return ", ".join(f"{symbols[part]} is {printable(name)!r}" for part, name in found.items())


def _records(
    rows: Sequence[Mapping[str, Any]], found: Mapping[str, str], path: Path, notes: list[str]
) -> list[dict[str, Any]]:
    """The finished runs among the rows, as numbers by part; the others are counted."""
    states = {plain_name(name): name for row in rows for name in row}
    state = states.get("state") or states.get("status")
    names = [states[name] for name in ("name", "run", "runname", "id", "runid") if name in states]
    kept, left = [], Counter()
    for i, row in enumerate(rows):
        if state and str(row.get(state, "")).lower() not in FINISHED | {""}:
            left[f"{state} {printable(str(row.get(state)))[:20]!r}"] += 1
            continue
        values: dict[str, Any] = {
            part: number_of(row.get(found[part]))
            for part in ("n", "d", "c", "batch", "lr", "loss")
            if part in found
        }
        for part in OPTIONAL:
            value = values.get(part)
            if value is None or not (math.isfinite(value) and value > 0):
                values[part] = None
        bad = [
            part
            for part, value in values.items()
            if part not in OPTIONAL and (value is None or not math.isfinite(value) or value <= 0)
        ]
        if bad:
            left[f"{found[bad[0]]!r} is no number above 0"] += 1
            continue
        group = printable(str(row.get(found["group"], ""))) if "group" in found else ""
        name = next((str(row[column]) for column in names if row.get(column)), f"row {i + 1}")
        conditions = {
            column: str(value)
            for column, value in row.items()
            if CONDITIONS.search(plain_name(column))
            and column not in (found[part] for part in found if part not in OPTIONAL)
        }
        unit = found.get("d", "data").rpartition(".")[2]
        kept.append(values | {"group": group, "name": name, "unit": unit, "conditions": conditions})
    notes += [f"{path}: left out, {count} of {len(rows)}: {why}" for why, count in left.items()]
    return kept


def _without_copies(records: list[dict[str, Any]], notes: list[str]) -> list[dict[str, Any]]:
    """One of each: two runs never end at the same loss to the last digit."""
    seen: dict[tuple, dict[str, Any]] = {}
    for record in records:
        key = tuple(record.get(part) for part in ("n", "d", "c", "loss", "group"))
        seen.setdefault(key, record)
    if copies := len(records) - len(seen):
        notes.append(f"left out: {copies} {'copy' if copies == 1 else 'copies'} of other runs")
    return list(seen.values())


def _table(label: str, records: Sequence[Mapping[str, Any]]) -> RunTable:
    def column(part: str) -> np.ndarray | None:
        values = [record.get(part) for record in records]
        return None if any(value is None for value in values) else np.array(values, float)

    loss = column("loss")
    assert loss is not None  # a record has one
    differing = []
    for name in dict.fromkeys(name for record in records for name in record["conditions"]):
        values = {record["conditions"].get(name, "") for record in records}
        if len(values) > 1:
            differing.append(f"{printable(name)} ({len(values)} values)")
    return RunTable(
        label or "all runs",
        str(records[0]["unit"]),
        [str(record["name"]) for record in records],
        column("n"),
        column("d"),
        column("c"),
        loss,
        differing,
        column("batch"),
        column("lr"),
    )
