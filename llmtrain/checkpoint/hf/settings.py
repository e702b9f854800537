"""What the config tables of all families have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmtrain.checkpoint.hf.family import Settings
from llmtrain.utils.errors import ConfigError

Table = Mapping[str, tuple[str, Any]]
"""Key there -> key here, and what Hugging Face takes where a file does not say."""


def read_values(theirs: Settings, table: Table) -> dict[str, Any]:
    """Our values for the keys of a table."""
    return {ours: theirs.get(key, default) for key, (ours, default) in table.items()}


def write_values(config: Any, table: Table) -> dict[str, Any]:
    """Their values for the keys of a table."""
    return {key: getattr(config, ours) for key, (ours, _) in table.items()}


def check_fixed(theirs: Settings, fixed: Settings, family: str, where: str) -> None:
    """Refuse settings of which we know one value only, which is the default too.

    Raises:
        ConfigError: one has another value.
    """
    for key, value in fixed.items():
        if theirs.get(key, value) != value:
            raise ConfigError(
                f"{family} with {key}={theirs[key]} is not known here",
                where,
                f"only {key}={value} can be read",
            )


def known(
    theirs: Settings, key: str, default: str, values: Mapping[str, Any], family: str, where: str
) -> Any:
    """Our value for a word of theirs.

    Raises:
        ConfigError: the word is not known.
    """
    word = theirs.get(key, default)
    if word not in values:
        raise ConfigError(
            f"{family} with {key}={word} is not known here", where, f"known are {', '.join(values)}"
        )
    return values[word]


def word_for(value: Any, values: Mapping[str, Any]) -> str | None:
    """Their first word for a value of ours, or None."""
    return next((word for word, ours in values.items() if ours == value), None)


def differing(config: Any, wanted: Mapping[str, Any]) -> list[str]:
    """Settings of ours that are not as wanted, as `key=value`."""
    found = {key: getattr(config, key) for key, value in wanted.items() if getattr(config, key) != value}
    return [f"{key}={getattr(value, 'value', value)}" for key, value in found.items()]
