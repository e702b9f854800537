"""What there is to know about a model family in Hugging Face's layout, as data."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from llmtrain.schema.model import ModelConfig


class KeyTable:
    """Names of parameters there and here, both ways.

    Args:
        pairs: name there, name here, of parameters or of modules whose parameters go by the same last
            word; `{}` stands for the number of a block.
    """

    def __init__(self, pairs: Sequence[tuple[str, str]]) -> None:
        self._to_ours = dict(pairs)
        self._to_theirs = {ours: theirs for theirs, ours in pairs}
        assert len(self._to_ours) == len(self._to_theirs) == len(pairs), "a name stands twice in the table"

    def ours(self, key: str) -> str | None:
        """The name here of a parameter there, or None."""
        return _translate(key, self._to_ours)

    def theirs(self, name: str) -> str | None:
        """The name there of a parameter here, or None."""
        return _translate(name, self._to_theirs)


def _translate(name: str, table: Mapping[str, str]) -> str | None:
    """Look up a name, or else its module, with the number of its block set aside."""
    number = re.search(r"(?<=\.)\d+(?=\.)", name)
    general = name if number is None else f"{name[: number.start()]}{{}}{name[number.end() :]}"
    module, _, leaf = general.rpartition(".")
    found = table.get(general)
    if found is None and module in table:
        found = f"{table[module]}.{leaf}"
    if found is None or number is None:
        return found
    return found.replace("{}", number[0])


@dataclass(frozen=True)
class Family:
    """How a model family looks in Hugging Face's layout.

    Attributes:
        model_type: its name in `config.json`.
        config: our dataclass.
        keys: names of its parameters.
        vocabulary: our names of the parameters whose rows stand for tokens, which we pad.
        read_config: content of `config.json` and where it stands -> our config; raises ConfigError.
        write_config: our config -> content of `config.json` without the architecture; raises ConfigError.
        normalise_key: spelling of a key that may be an old one -> spelling of the table; None for what is no
            parameter.
        repeated: (key there, other key there) pairs of parameters that are one in our model; the first may
            stand in a file if it equals the second.
        architecture: our names -> class of theirs that has them.
        finish: architecture and translated tensors (changed in place) -> what that class wants besides.
    """

    model_type: str
    config: type[ModelConfig]
    keys: KeyTable
    vocabulary: tuple[str, ...]
    read_config: Callable[[Mapping[str, Any], str], ModelConfig]
    write_config: Callable[[Any], dict[str, Any]]
    normalise_key: Callable[[str], str | None]
    repeated: tuple[tuple[str, str], ...]
    architecture: Callable[[set[str]], str]
    finish: Callable[[str, dict[str, Tensor]], dict[str, Tensor]]
