"""What there is to know about a model family in a foreign layout, as data."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from llmtrain.checkpoint.weights import Stored
from llmtrain.schema.model import ModelConfig

Settings = Mapping[str, Any]
"""Content of a `config.json`."""


class KeyTable:
    """Names of parameters there and here, both ways.

    Args:
        pairs: name there, name here, of parameters or of modules whose parameters go by the same last
            word; `{}` stands for the number of a block, and `/0`, `/1`, ... behind a name there for a
            part of it (see `Family.joined`).
    """

    def __init__(self, pairs: Sequence[tuple[str, str]]) -> None:
        self._to_ours = dict(pairs)
        self._to_theirs = {ours: theirs for theirs, ours in pairs}
        assert len(self._to_ours) == len(self._to_theirs) == len(pairs), "a name stands twice in the table"

    def modules(self) -> list[str]:
        """Names there, as they stand in the table."""
        return list(self._to_ours)

    def ours(self, key: str) -> str | None:
        """The name here of a parameter there, or None."""
        return _translate(key, self._to_ours)

    def theirs(self, name: str) -> str | None:
        """The name there of a parameter here, or None."""
        return _translate(name, self._to_theirs)


def general(name: str) -> tuple[str, str | None]:
    """A name with `{}` for the number of its block, and the number."""
    number = re.search(r"(?<=\.)\d+(?=\.)", name)
    if number is None:
        return name, None
    return f"{name[: number.start()]}{{}}{name[number.end() :]}", number[0]


def _translate(name: str, table: Mapping[str, str]) -> str | None:
    """Look up a name, or else its module, with the number of its block set aside."""
    pattern, number = general(name)
    module, _, leaf = pattern.rpartition(".")
    found = table.get(pattern)
    if found is None and module in table:
        found = f"{table[module]}.{leaf}"
    if found is None or number is None:
        return found
    return found.replace("{}", number)


@dataclass(frozen=True)
class Change:
    """How the values of a tensor stand there, both ways.

    Attributes:
        ours: tensor there -> tensor here, given the settings there.
        theirs: the way back.
    """

    ours: Callable[[Tensor, Settings], Tensor]
    theirs: Callable[[Tensor, Settings], Tensor]


def _turn(tensor: Tensor, settings: Settings) -> Tensor:
    return tensor.transpose(0, 1) if tensor.ndim == 2 else tensor


TRANSPOSED = Change(_turn, _turn)
"""Inputs by outputs instead of outputs by inputs."""


@dataclass(frozen=True)
class Family:
    """How a model family looks in a foreign layout.

    Attributes:
        model_type: its name in `config.json`.
        config: our dataclass.
        keys: names of its parameters.
        vocabulary: our names of the parameters whose rows stand for tokens, which we pad.
        read_config: content of `config.json` and where it stands -> our config; raises ConfigError.
        write_config: our config, and what `config.json` will say about the tokenizer -> content of
            `config.json` without the architecture.
        misfits: the same arguments -> settings that the family cannot express; none if it can.
        normalise_key: spelling of a key that may be an old one -> spelling of the table; None for what is no
            parameter.
        repeated: (key there, other key there) pairs of parameters that are one in a model of ours that ties
            them; the first may stand in a file if it equals the second.
        architecture: our names -> class of theirs that has them.
        finish: architecture and translated tensors -> what that class wants besides, under its names.
        joined: modules there that are several here, side by side along the last dimension, and how many;
            in the table their parts go by the name with `/0`, `/1`, ...
        changes: our names (`{}` for the number of a block) of the parameters whose values stand otherwise.
    """

    model_type: str
    config: type[ModelConfig]
    keys: KeyTable
    vocabulary: tuple[str, ...]
    read_config: Callable[[Settings, str], ModelConfig]
    write_config: Callable[[Any, Settings], dict[str, Any]]
    misfits: Callable[[Any, Settings], list[str]]
    normalise_key: Callable[[str], str | None]
    repeated: tuple[tuple[str, str], ...]
    architecture: Callable[[set[str]], str]
    finish: Callable[[str, dict[str, Stored]], dict[str, Stored]]
    joined: Mapping[str, int] = field(default_factory=dict)
    changes: Mapping[str, Change] = field(default_factory=dict)

    def parts(self, key: str, stored: Stored) -> dict[str, Stored]:
        """A tensor there, or its parts where it is joined, by the keys of the table."""
        module, _, leaf = key.rpartition(".")
        count = self.joined.get(general(key)[0].rpartition(".")[0])
        if count is None or not stored.shape or stored.shape[-1] % count:
            return {key: stored}
        return {f"{module}/{number}.{leaf}": _part(stored, number, count) for number in range(count)}

    def ours(self, name: str, stored: Stored, settings: Settings) -> Stored:
        """A tensor there as it stands here, given its name here."""
        change = self.changes.get(general(name)[0])
        return stored if change is None else stored.changed(lambda tensor: change.ours(tensor, settings))

    def theirs(self, tensors: Mapping[str, Stored], settings: Settings) -> dict[str, Stored]:
        """Our tensors as they stand there, by the keys there; every name must have one."""
        split: dict[str, Stored] = {}
        for name, stored in tensors.items():
            key = self.keys.theirs(name)
            assert key is not None, name
            change = self.changes.get(general(name)[0])
            split[key] = stored if change is None else _written(stored, change, settings)
        joined: dict[str, Stored] = {}
        for key, stored in split.items():
            whole = re.sub(r"/\d+(?=\.\w+$)", "", key)
            if whole == key:
                joined[key] = stored
            elif whole not in joined:
                module, _, leaf = whole.rpartition(".")
                count = self.joined[general(whole)[0].rpartition(".")[0]]
                joined[whole] = _join([split[f"{module}/{number}.{leaf}"] for number in range(count)])
        return joined


def _written(stored: Stored, change: Change, settings: Settings) -> Stored:
    return stored.changed(lambda tensor: change.theirs(tensor, settings))


def _part(stored: Stored, number: int, count: int) -> Stored:
    return stored.changed(lambda tensor: tensor.chunk(count, dim=-1)[number])


def _join(parts: list[Stored]) -> Stored:
    shape = torch.Size((*parts[0].shape[:-1], sum(part.shape[-1] for part in parts)))
    return Stored(shape, lambda: torch.cat([part.read() for part in parts], dim=-1))
