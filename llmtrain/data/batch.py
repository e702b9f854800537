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
        labels: (B, M) int64 labels of positions, or IGNORE; what a label means is the head's: the token to
            predict, the tag of a word, or (M = 2) where a span starts and ends. None where positions carry
            no labels.
        selected: (B, M) int64 positions of the labels in the row; None means that M = T and every
            position has its own label.
        positions: (B, T) int64 position of each token in its document; None means 0..T-1.
        documents: (B, T) int32 number of the document (or sample) inside the row; padding counts as one
            more; None means that attention is not kept inside documents.
        segments: (B, T) int64 sentence A (0) or B (1) of a pair; None where there are no segments.
        first: (B, S) int64 position whose hidden state stands for each packed sample: its first token, or
            (models that only look back) its last; 0 where a row has fewer samples. None where not needed.
        sample_labels: (B, S) int64 class, or (B, S, C) float32 targets (C classes or numbers), of each
            packed sample; IGNORE (as a float too) where there is none.
        num_tokens: real tokens in the batch, padding not counted; None means B x T.
    """

    ids: Tensor
    labels: Tensor | None = None
    selected: Tensor | None = None
    positions: Tensor | None = None
    documents: Tensor | None = None
    segments: Tensor | None = None
    first: Tensor | None = None
    sample_labels: Tensor | None = None
    num_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.num_tokens is None:
            self.num_tokens = self.ids.numel()

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device; copies from pinned memory do not wait."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory."""
        return self._map(Tensor.pin_memory)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        mapped: dict[str, Any] = {k: function(v) if isinstance(v, Tensor) else v for k, v in values.items()}
        return Batch(**mapped)
