"""What heads are made of: choosing positions, and small layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmtrain.data.batch import IGNORE, Batch


def select(hidden_BTD: Tensor, positions_BM: Tensor | None) -> Tensor:
    """Hidden states at some positions of each row, (B, M, D); None takes all, (B, T, D)."""
    if positions_BM is None:
        return hidden_BTD
    return hidden_BTD.gather(1, positions_BM[..., None].expand(-1, -1, hidden_BTD.shape[-1]))


def labelled(hidden_BTD: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Hidden states at the labels of a batch, (N, D), and the labels, (N,).

    On a CPU what is labelled IGNORE is left out, but for a few that make N a round number: masks give another
    number in each step, and for each new one the library of matrix products writes new machine code, which
    takes a fifth of a step of BERT-small. Elsewhere counting them would make the host wait.
    """
    assert batch.labels is not None
    hidden_ND, labels_N = select(hidden_BTD, batch.selected).flatten(0, 1), batch.labels.flatten()
    if labels_N.device.type != "cpu":
        return hidden_ND, labels_N
    has_label = labels_N != IGNORE
    kept = has_label.nonzero()[:, 0]
    if len(kept) == len(labels_N):
        return hidden_ND, labels_N
    missing = -len(kept) % round_size(len(kept))
    if missing:
        kept = torch.cat([kept, has_label.logical_not().nonzero()[:missing, 0]])
    return hidden_ND.index_select(0, kept), labels_N.index_select(0, kept)


def round_size(count: int) -> int:
    """The largest power of two that is at most a sixteenth of a number, at least 1."""
    return 1 << max(0, (count // 16).bit_length() - 1)


class ClassWeights:
    """Weights of classes for a loss function; copied to a device once, not in each forward pass.

    Args:
        values: one for each class; none is 1 for all.
    """

    def __init__(self, values: Sequence[float]) -> None:
        self._values = torch.tensor(list(values), dtype=torch.float32, device="cpu") if values else None

    def on(self, device: torch.device) -> Tensor | None:
        """The weights on a device; None where there are none."""
        if self._values is not None and self._values.device != device:
            self._values = self._values.to(device)
        return self._values


class Scores(nn.Linear):
    """A small layer that multiplies in the format of its weight, fp32, under autocast too.

    In bf16 scores between 4 and 8 are 0.03 apart: too coarse for what is best among many.
    """

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., C), fp32."""
        with torch.autocast(hidden.device.type, enabled=False):
            return F.linear(hidden.to(self.weight.dtype), self.weight, self.bias)


class Pooler(nn.Module):
    """BERT's reading of the first token for a whole sample: a layer and tanh.

    Args:
        dim: D.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dense = nn.Linear(dim, dim)

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return torch.tanh(self.dense(hidden))
