"""The keys that make a run what it is: they name it, and may not change when it is resumed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

from llmtrain.schema.load import dump, flatten
from llmtrain.schema.roots import FROZEN


def is_frozen(key: str) -> bool:
    """Whether a dotted key may not change on resume."""
    return any(key == frozen or key.startswith(f"{frozen}.") for frozen in FROZEN)


def frozen_hash(config: Any) -> str:
    """Eight hex digits that change with every frozen key of a configuration.

    Keys at their defaults are left out: a key that comes with a later version gives no run another name.
    """
    usual = flatten(defaults(config))
    values = {
        key: value
        for key, value in flatten(dump(config)).items()
        if is_frozen(key) and (key.endswith(".kind") or key not in usual or usual[key] != value)
    }
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def defaults(config: Any) -> dict[str, Any]:
    """What the sections of a configuration hold where nothing is said, as plain data.

    A section that is there by choice (its default is none) has no defaults: it stands as None.
    """
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        usual: Any = None
        if field.default is not dataclasses.MISSING:
            usual = field.default
        elif field.default_factory is not dataclasses.MISSING:
            usual = field.default_factory()
        chosen = dataclasses.is_dataclass(value) and dataclasses.is_dataclass(usual)
        found[field.name] = defaults(value) if chosen else dump(usual)
    return found


def completed(old: dict[str, Any], usual: dict[str, Any]) -> dict[str, Any]:
    """The plain data of an earlier version's configuration with the defaults of what it did not know yet.

    Args:
        old: as it was written.
        usual: `defaults` of the configuration that it is compared with.
    """
    result = dict(old)
    if old.get("kind", usual.get("kind")) != usual.get("kind"):
        return result  # another kind of thing has other keys
    for key, value in usual.items():
        if key not in old:
            result[key] = value
        elif isinstance(value, dict) and isinstance(old[key], dict):
            result[key] = completed(old[key], value)
    return result


def changes(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted keys that differ between two dumped configs: key -> (old, new).

    A value that was left to be decided (`null` or `auto`) in `new` and is decided in `old` is no change.
    """
    before, after = flatten(old), flatten(new)
    differing: dict[str, tuple[Any, Any]] = {}
    for key in sorted(before | after):
        was, now = before.get(key), after.get(key)
        if was != now and not (now in (None, "auto") and was is not None):
            differing[key] = (was, now)
    return differing
