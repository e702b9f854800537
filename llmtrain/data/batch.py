"""`Batch`: the one type that crosses from data to the engine, the model and the objective."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

IGNORE = -100
"""Label of a position that carries none; PyTorch's usual value."""


@dataclass
class Batch:
    """Rows of tokens with their labels. All tensors split along their first dimension.

    Attributes:
        ids: (B, T) int64, token ids.
        labels: (B, M) int64, the token to predict, or IGNORE.
        selected: (B, M) int64 positions of the labels in the row; None means that M = T and every
            position has its own label.
        positions: (B, T) int64 position of each token in its document; None means 0..T-1.
        documents: (B, T) int32 number of the document inside the row; None means that attention is not
            kept inside documents.
        segments: (B, T) int64 sentence A or B of a pair; None where there are no pairs.
        first: (B, S) int64 positions at which packed samples start; None where not needed.
    """

    ids: Tensor
    labels: Tensor
    selected: Tensor | None = None
    positions: Tensor | None = None
    documents: Tensor | None = None
    segments: Tensor | None = None
    first: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device; copies from pinned memory do not wait."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory."""
        return self._map(Tensor.pin_memory)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        mapped: dict[str, Any] = {k: None if v is None else function(v) for k, v in values.items()}
        return Batch(**mapped)
