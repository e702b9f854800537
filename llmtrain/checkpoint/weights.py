"""Weights in files, read where and when a model needs them: nobody ever holds all of them besides it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from llmtrain.model.initialise import fill


class Weights(Protocol):
    """Values for the parameters of a model."""

    @property
    def shapes(self) -> Mapping[str, torch.Size]:
        """Of the whole tensors, by name; nothing is read for it."""

    def fill(self, parameters: Mapping[str, Tensor]) -> None:
        """Read values into parameters of these names, or into the shares of them that this process has."""


@dataclass(frozen=True)
class Stored:
    """A tensor in a file.

    Attributes:
        shape: known without reading it.
        read: reads it, each time anew.
    """

    shape: torch.Size
    read: Callable[[], Tensor]

    def fp32(self) -> Stored:
        """The same in fp32."""
        return Stored(self.shape, lambda: self.read().float())

    def changed(self, change: Callable[[Tensor], Tensor]) -> Stored:
        """What a function makes of it, each time it is read."""
        shape = change(torch.empty(self.shape, device="meta")).shape
        return Stored(shape, lambda: change(self.read()))

    def padded(self, rows: int) -> Stored:
        """With so many rows: there are zeros behind its own."""
        padding = (0, 0) * (len(self.shape) - 1) + (0, rows - self.shape[0])
        return Stored(torch.Size((rows, *self.shape[1:])), lambda: F.pad(self.read(), padding))


class StoredTensors(Mapping[str, Tensor]):
    """Tensors by name, each of which is read when it is asked for, and not kept.

    Args:
        stored: where they are.
    """

    def __init__(self, stored: Mapping[str, Stored]) -> None:
        self.stored = stored

    def __getitem__(self, name: str) -> Tensor:
        return self.stored[name].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)

    @property
    def shapes(self) -> Mapping[str, torch.Size]:
        """See `Weights`."""
        return {name: one.shape for name, one in self.stored.items()}

    @torch.no_grad()
    def fill(self, parameters: Mapping[str, Tensor]) -> None:
        """See `Weights`; one tensor after the other."""
        for name, parameter in parameters.items():
            fill(parameter, self[name])
