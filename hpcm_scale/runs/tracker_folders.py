"""Runs as trackers keep them on disk: TensorBoard's event files and W&B's offline folders.

A run is a folder. Its row has the settings that were logged with it and the last value of every
scalar, under the names they were logged by.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from hpcm_scale.errors import RunError, one_line, printable
from hpcm_scale.runs.nested import flat

EVENTS = "events.out.tfevents.*"
SUMMARY = "wandb-summary.json"
SETTINGS = ("hparams.yml", "hparams.yaml")
"""Files of settings that loggers write beside their events (accelerate, Lightning)."""
PLUGIN = "hparams"
"""TensorBoard's, which keeps a run's settings."""
LARGEST_FILE = 64 << 20
"""Bytes of a file of settings."""


def is_tracker_folder(path: Path | str) -> bool:
    """Whether a folder holds runs of a tracker, and none of this program's."""
    path = Path(path)
    return (
        path.is_dir()
        and next(path.rglob("run.json"), None) is None
        and any(next(path.rglob(pattern), None) for pattern in (EVENTS, SUMMARY))
    )


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """A row for each run below a folder, named by its path there.

    Raises:
        RunError: if a file is damaged.
    """
    rows = []
    for summary in sorted(folder.rglob(SUMMARY)):
        run = summary.parent.parent if summary.parent.name == "files" else summary.parent
        settings = _settings(summary.parent / "config.yaml")
        rows.append(_named(run, folder) | settings | dict(flat(_read(summary))))
    runs = sorted({events.parent for events in folder.rglob(EVENTS)})
    for run in runs:
        row = _events(run)
        for name in SETTINGS:
            row = _settings(run / name) | row
        if row:
            rows.append(_named(run, folder) | row)
    return rows


def _named(run: Path, folder: Path) -> dict[str, Any]:
    name = run.relative_to(folder).as_posix()
    return {"name": run.name if name == "." else name}


def _events(run: Path) -> dict[str, Any]:
    """Settings and last scalars of a folder of event files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import (
        HParamsPluginData,  # pyright: ignore[reportAttributeAccessIssue]
    )
    from tensorboard.util import tensor_util

    # Scalars of any number, and no pictures or histograms.
    sizes = {"scalars": 1, "tensors": 1, "images": 1, "histograms": 1}
    try:
        events = EventAccumulator(str(run), sizes).Reload()
        tags = events.Tags()
        row: dict[str, Any] = {}
        try:
            contents = events.PluginTagToContent(PLUGIN)
        except KeyError:  # a run whose settings were not logged
            contents = {}
        for content in contents.values():
            data = HParamsPluginData.FromString(content)
            for name, value in data.session_start_info.hparams.items():
                row[name] = getattr(value, value.WhichOneof("kind") or "string_value")
        for tag in tags["scalars"]:
            row[tag] = events.Scalars(tag)[-1].value
        for tag in tags["tensors"]:
            value = tensor_util.make_ndarray(events.Tensors(tag)[-1].tensor_proto)
            if value.size == 1 and value.dtype.kind in "fiu":
                row[tag] = float(value.item())
    except Exception as error:  # noqa: BLE001 - TensorBoard's own and protobuf's kinds
        raise RunError(f"{run}: its TensorBoard events are damaged ({one_line(error)})") from None
    return row


def _settings(path: Path) -> dict[str, Any]:
    """A file of settings, nested ones under dotted names; {} if it is not there."""
    if not path.is_file():
        return {}
    found = _read(path)
    # W&B keeps {"value": ...} of each, and its own under _wandb.
    return {
        name.removesuffix(".value"): value
        for name, value in flat(found)
        if not name.startswith(("_wandb", "wandb_version"))
    }


def _read(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise ValueError("is over 64 MiB")
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise RunError(f"{path}: cannot be read ({one_line(error)[:200]})") from None
    if values is not None and not isinstance(values, dict):
        raise RunError(f"{path}: holds {printable(type(values).__name__)}, not settings by name")
    return values or {}
