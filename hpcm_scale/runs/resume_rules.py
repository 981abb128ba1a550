"""Rules for which fields may change when a run is resumed, or branched off another."""

from collections.abc import Mapping, Sequence
from typing import Any

from hpcm_scale.config import ModelConfig, RunConfig

IMMUTABLE_FIELDS = ("seed", "model", "loss", "optimizer", "batch")
"""Sections of a run that stay as they are from its first session to its last."""
IMMUTABLE_DATA_FIELDS = ("crop", "flips", "streams", "shuffle_buffer")
"""Fields of its data section that do."""
NETWORK_FIELDS = ("model",)
"""Fields that a run which branches off another one's checkpoint shares with it."""

OPTIMIZER_STATE_FIELDS = ("freeze", "lr_factors", "parametrization", "base_width")
"""Fields of its optimizer section that decide how the optimizer state is grouped; it shares these
too."""


def first_difference(
    run: RunConfig,
    before: Mapping[str, Any],
    fields: Sequence[str] = IMMUTABLE_FIELDS,
    data_fields: Sequence[str] = IMMUTABLE_DATA_FIELDS,
) -> tuple[str, Any, Any] | None:
    """The first field of `run` that is not as it was: dotted name, old and new value.

    Args:
        before: the configuration as it was recorded, under current names. What it lacks was added
            by a later version of the package and stood at its default.
    """
    now = run.model_dump(mode="json")
    defaults = RunConfig.model_validate(
        {"name": "defaults", "steps": 1, "data": {"train": "none"}}
    ).model_dump(mode="json")
    data, data_now = before.get("data", {}), now["data"]
    pairs = [(name, before.get(name, defaults[name]), now[name], defaults[name]) for name in fields]
    pairs += [
        (f"data.{name}", data.get(name, defaults["data"][name]), data_now[name], None)
        for name in data_fields
    ]
    for name, old, new, default in pairs:
        if isinstance(old, dict) and isinstance(new, dict):
            old = (default or {}) | old
            changed = [key for key in old.keys() | new.keys() if old.get(key) != new.get(key)]
            if changed:
                key = min(changed)
                return f"{name}.{key}", old.get(key), new.get(key)
        elif old != new:
            return name, old, new
    return None


def network_difference(
    before: Mapping[str, Any], model: ModelConfig
) -> tuple[str, Any, Any] | None:
    """The first field in which a network differs from a recorded one: name, old and new value.

    Names and what papers printed are no part of a network, nor are fields that one of both lacks:
    they came with a later version, whose default is what the earlier one computed.
    """
    now = model.model_dump(mode="json", exclude={"name", "published"})
    changed = [name for name in now.keys() & before.keys() if now[name] != before[name]]
    return (min(changed), before[min(changed)], now[min(changed)]) if changed else None
