"""Heads of tasks: classes and numbers of samples, tags of words, spans that answer.

Losses are summed in fp32 whatever the format of the products.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from llmtrain.data.batch import IGNORE, Batch
from llmtrain.model.assembled import Backbone, Head
from llmtrain.model.heads.parts import ClassWeights, Pooler, Scores, labelled, select
from llmtrain.model.layers.dropout import Dropout
from llmtrain.model.plan import Split, TensorPlan
from llmtrain.schema.task import Pool, Target


class SampleHead(Head):
    """One class, several classes or numbers for each packed sample.

    Args:
        backbone: whose hidden states it takes.
        num_outputs: C, classes or numbers.
        pool: what stands for a sample: the state of its `first` position (which may be its last token, see
            `Batch.first`), or the mean over its tokens. An encoder's first state goes through a `Pooler`.
        target: label (cross-entropy), labels (binary cross-entropies) or number (squared error).
        weights: of each class in the loss; none is 1 for all.
        label_smoothing: share of the target that is spread over all classes (Szegedy et al. 2016, section 7).
    """

    def __init__(
        self,
        backbone: Backbone,
        num_outputs: int,
        pool: Pool = Pool.auto,
        target: Target = Target.label,
        weights: Sequence[float] = (),
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        assert len(weights) in (0, num_outputs), (len(weights), num_outputs)
        if pool is Pool.auto:
            pool = Pool.last if backbone.causal else Pool.first
        self.pool, self.target, self.weights = pool, target, ClassWeights(weights)
        self.label_smoothing = label_smoothing
        has_pooler = pool is Pool.first and not backbone.causal
        self.pooler = Pooler(backbone.dim) if has_pooler else None
        self.dropout = Dropout(backbone.dropout_rate)
        self.classifier = Scores(backbone.dim, num_outputs)

    def sums(self, hidden_BTD: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Sums over the samples: `loss` (fp32 scalar), weighted where there are weights."""
        assert batch.sample_labels is not None
        scores_NC, targets = self.predict(hidden_BTD, batch).flatten(0, 1), batch.sample_labels.flatten(0, 1)
        weights = self.weights.on(scores_NC.device)
        if self.target is Target.label:
            loss = F.cross_entropy(
                scores_NC,
                targets,
                weights,
                ignore_index=IGNORE,
                reduction="sum",
                label_smoothing=self.label_smoothing,
            )
            return {"loss": loss}
        given = targets != IGNORE
        targets = targets.where(given, 0).to(scores_NC.dtype)
        if self.target is Target.number:
            losses = F.mse_loss(scores_NC, targets, reduction="none")
        else:
            losses = F.binary_cross_entropy_with_logits(scores_NC, targets, weights, reduction="none")
        return {"loss": losses.where(given, 0).sum()}

    def predict(self, hidden_BTD: Tensor, batch: Batch) -> Tensor:
        """Logits of the classes, or numbers, for each packed sample, (B, S, C) fp32."""
        assert batch.first is not None
        if self.pool is Pool.mean:
            pooled_BSD = sample_means(hidden_BTD, batch.documents, batch.first.shape[1])
        else:
            pooled_BSD = select(hidden_BTD, batch.first)
        if self.pooler is not None:
            pooled_BSD = self.pooler(pooled_BSD)
        scores_BSC: Tensor = self.classifier(self.dropout(pooled_BSD))
        return scores_BSC

    def flops_per_label(self) -> int:
        """Floating-point operations of forward and backward for one sample."""
        return 6 * sum(parameter.numel() for parameter in self.parameters() if parameter.ndim > 1)

    def tensor_plan(self) -> TensorPlan:
        """Every process does the same."""
        return {"": Split.gather_whole, "pooler.dense": Split.whole, "classifier": Split.whole}


def sample_means(hidden_BTD: Tensor, documents_BT: Tensor | None, num_samples: int) -> Tensor:
    """Mean hidden state of each packed sample, (B, S, D).

    Args:
        hidden_BTD: hidden states.
        documents_BT: sample k of a row has number k; None means that each row is one sample.
        num_samples: S; the mean of a sample that is not there is 0.
    """
    if documents_BT is None:
        assert num_samples == 1, "rows of several samples need document numbers"
        return hidden_BTD.mean(dim=1, keepdim=True)
    numbers_S = torch.arange(num_samples, device=documents_BT.device)
    member_BST = (documents_BT[:, None, :] == numbers_S[:, None]).to(hidden_BTD.dtype)
    return member_BST @ hidden_BTD / member_BST.sum(dim=2, keepdim=True).clamp(min=1)


class TokenHead(Head):
    """A class for each position.

    Args:
        backbone: whose hidden states it takes.
        num_labels: C.
        weights: of each class in the loss; none is 1 for all.
    """

    def __init__(self, backbone: Backbone, num_labels: int, weights: Sequence[float] = ()) -> None:
        super().__init__()
        assert len(weights) in (0, num_labels), (len(weights), num_labels)
        self.weights = ClassWeights(weights)
        self.dropout = Dropout(backbone.dropout_rate)
        self.classifier = Scores(backbone.dim, num_labels)

    def sums(self, hidden_BTD: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Sums over the labelled positions: `loss` (fp32 scalar), weighted where there are weights."""
        hidden_ND, labels_N = labelled(hidden_BTD, batch)
        scores_NC = self.classifier(self.dropout(hidden_ND))
        weights = self.weights.on(scores_NC.device)
        return {"loss": F.cross_entropy(scores_NC, labels_N, weights, ignore_index=IGNORE, reduction="sum")}

    def predict(self, hidden_BTD: Tensor, batch: Batch) -> Tensor:
        """Logits of the classes at the selected positions, (B, M, C) fp32; at all where none are selected."""
        scores_BMC: Tensor = self.classifier(self.dropout(select(hidden_BTD, batch.selected)))
        return scores_BMC

    def flops_per_label(self) -> int:
        """Floating-point operations of forward and backward for one label."""
        return 6 * self.classifier.weight.numel()

    def tensor_plan(self) -> TensorPlan:
        """Every process does the same."""
        return {"": Split.gather_whole, "classifier": Split.whole}


class SpanHead(Head):
    """Where in a row a span starts and ends.

    Args:
        backbone: whose hidden states it takes.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.span = Scores(backbone.dim, 2)

    def sums(self, hidden_BTD: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Sums over the rows: `loss`, cross-entropies of start and of end (fp32 scalar)."""
        assert batch.labels is not None
        scores_BT2 = self.predict(hidden_BTD, batch)
        # Each position is a class; start and end are two predictions of a row.
        return {"loss": F.cross_entropy(scores_BT2, batch.labels, ignore_index=IGNORE, reduction="sum")}

    def predict(self, hidden_BTD: Tensor, batch: Batch) -> Tensor:
        """Logits of each position to be start and end, (B, T, 2) fp32; -inf outside the row's sample."""
        scores_BT2: Tensor = self.span(hidden_BTD)
        if batch.documents is None:
            return scores_BT2
        return scores_BT2.masked_fill((batch.documents != 0)[..., None], -torch.inf)

    def flops_per_label(self) -> int:
        """Floating-point operations of forward and backward for one row's position."""
        return 6 * self.span.weight.numel()

    def tensor_plan(self) -> TensorPlan:
        """Every process does the same."""
        return {"": Split.gather_whole, "span": Split.whole}
