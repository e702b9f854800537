"""Autoregressive language modelling."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from llmtrain.data.batch import IGNORE, Batch
from llmtrain.data.causal import causal_batch
from llmtrain.data.rows import Row


class Causal:
    """Cross-entropy of every token given those before it in its row.

    Args:
        isolate_documents: keep attention and prediction inside each document.
    """

    def __init__(self, isolate_documents: bool) -> None:
        self.isolate_documents = isolate_documents

    def collate(self, rows: Sequence[Row]) -> Batch:
        """Rows of the plan -> batch with labels."""
        return causal_batch(rows, self.isolate_documents)

    def count(self, batch: Batch) -> dict[str, int]:
        """Number of labels: the denominator of the loss."""
        return {"tokens": int((batch.labels != IGNORE).sum())}

    def loss(self, sums: dict[str, Tensor], counts: dict[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
        """Weigh the head's sums by global counts.

        Args:
            sums: `loss`, from the head.
            counts: labels of the whole global batch, not of this part of it.

        Returns:
            the loss whose gradients, summed over all parts, are those of the mean over all labels;
            and statistics that add up over the parts.
        """
        loss = sums["loss"] / counts["tokens"]
        return loss, {"loss": loss.detach()}
