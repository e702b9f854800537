"""The keys that make a run what it is: they name it, and may not change when it is resumed."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from llmtrain.schema.load import flatten
from llmtrain.schema.roots import FROZEN


def is_frozen(key: str) -> bool:
    """Whether a dotted key may not change on resume."""
    return any(key == frozen or key.startswith(f"{frozen}.") for frozen in FROZEN)


def frozen_values(config: dict[str, Any]) -> dict[str, Any]:
    """The frozen part of a dumped config, with dotted keys."""
    return {key: value for key, value in flatten(config).items() if is_frozen(key)}


def frozen_hash(config: dict[str, Any]) -> str:
    """Eight hex digits that change with every frozen key."""
    text = json.dumps(frozen_values(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


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
