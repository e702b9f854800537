"""Autoregressive language modelling."""

from __future__ import annotations

from torch import Tensor

from llmtrain.data.batch import IGNORE, Batch
from llmtrain.data.rows import StreamRows
from llmtrain.data.store import View
from llmtrain.model.assembled import Backbone
from llmtrain.model.heads.vocabulary import LanguageModelHead
from llmtrain.model.kernels.linear_cross_entropy import PLAIN, LossTerms


class Causal:
    """Cross-entropy of every token given those before it in its row.

    Args:
        isolate_documents: keep attention and prediction inside each document.
        terms: what is added to the loss in training.
    """

    labelled_share = 1.0

    def __init__(self, isolate_documents: bool, terms: LossTerms = PLAIN) -> None:
        self.isolate_documents = isolate_documents
        self.terms = terms

    def rows(self, view: View, *, sequence_length: int, seed: int, shuffle: bool) -> StreamRows:
        """Rows of the joined documents, every token an input once in an epoch."""
        return StreamRows(
            view,
            sequence_length=sequence_length,
            seed=seed,
            shuffle=shuffle,
            isolate_documents=self.isolate_documents,
        )

    def build_head(self, backbone: Backbone) -> LanguageModelHead:
        """Projection onto the vocabulary."""
        return LanguageModelHead(backbone, self.terms)

    def count(self, batch: Batch) -> dict[str, float]:
        """Number of labels: the denominator of the loss."""
        assert batch.labels is not None
        return {"labels": int((batch.labels != IGNORE).sum())}

    def loss(self, sums: dict[str, Tensor], counts: dict[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
        """Weigh the head's sums by global counts.

        Args:
            sums: `loss`, from the head.
            counts: labels of the whole global batch, not of this part of it.

        Returns:
            the loss whose gradients, summed over all parts, are those of the mean over all labels;
            and statistics that add up over the parts.
        """
        loss = sums["loss"] / counts["labels"]
        return loss, {"loss": loss.detach()}
