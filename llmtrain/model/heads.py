"""Heads: from hidden states to sums of losses, or to predictions.

Losses are summed in fp32 whatever the format of the products.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmtrain.data.batch import IGNORE, Batch
from llmtrain.model.assembled import Backbone, Head
from llmtrain.model.kernels.linear_cross_entropy import (
    PLAIN,
    LossTerms,
    VocabularyShard,
    linear_cross_entropy,
)
from llmtrain.model.layers.dropout import Dropout
from llmtrain.model.layers.mlp import build_gelu
from llmtrain.model.plan import Split, TensorPlan
from llmtrain.schema.task import Pool, Target


def select(hidden_BTD: Tensor, positions_BM: Tensor | None) -> Tensor:
    """Hidden states at some positions of each row, (B, M, D); None takes all, (B, T, D)."""
    if positions_BM is None:
        return hidden_BTD
    return hidden_BTD.gather(1, positions_BM[..., None].expand(-1, -1, hidden_BTD.shape[-1]))


def labelled(hidden_BTD: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Hidden states at the labels of a batch, (N, D), and the labels, (N,).

    On a CPU what is labelled IGNORE is left out; elsewhere counting the rest would make the host wait.
    """
    assert batch.labels is not None
    hidden_ND, labels_N = select(hidden_BTD, batch.selected).flatten(0, 1), batch.labels.flatten()
    if labels_N.device.type != "cpu":
        return hidden_ND, labels_N
    kept = (labels_N != IGNORE).nonzero()[:, 0]
    if len(kept) == len(labels_N):
        return hidden_ND, labels_N
    return hidden_ND.index_select(0, kept), labels_N.index_select(0, kept)


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


def local(parameter: Any) -> Tensor | None:
    """The share of a parameter that this process has, as a plain tensor."""
    return None if parameter is None else parameter.to_local()


class Scores(nn.Linear):
    """A small layer that multiplies in the format of its weight, fp32, under autocast too.

    In bf16 scores between 4 and 8 are 0.03 apart: too coarse for what is best among many.
    """

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., C), fp32."""
        with torch.autocast(hidden.device.type, enabled=False):
            return F.linear(hidden.to(self.weight.dtype), self.weight, self.bias)


class VocabularyProjection(nn.Linear):
    """Hidden states -> scores of all tokens.

    Args:
        backbone: its embedding's weight is the projection's too where `tie_embeddings` says so. Rows of
            the weight beyond its vocabulary stay outside the softmax.
        bias: whether there is one for each token.
        terms: what is added to the loss in training.

    Attributes:
        shard: which tokens are those of this process, where several share the vocabulary.
    """

    shard: VocabularyShard | None = None

    def __init__(self, backbone: Backbone, bias: bool, terms: LossTerms = PLAIN) -> None:
        super().__init__(backbone.dim, backbone.embedding.num_embeddings, bias)
        self.vocab_size = backbone.vocab_size
        self.terms = terms
        if backbone.tie_embeddings:
            self.weight = backbone.embedding.weight

    def loss(
        self, hidden_ND: Tensor, labels_N: Tensor, count_correct: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Sum of cross-entropies, and number of correct predictions; see `linear_cross_entropy`."""
        weight, bias, vocab_size = self._own()
        terms = self.terms if self.training else PLAIN
        return linear_cross_entropy(
            hidden_ND, weight, labels_N, vocab_size, bias, count_correct, self.shard, terms
        )

    def _own(self) -> tuple[Tensor, Tensor | None, int]:
        """Weight and bias of this process as plain tensors, and how many of their tokens are real."""
        if self.shard is None:
            return self.weight, self.bias, self.vocab_size
        weight, bias = (local(part) for part in (self.weight, self.bias))
        assert weight is not None
        return weight, bias, max(0, min(self.vocab_size - self.shard.start, len(weight)))

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V), real tokens only."""
        assert self.shard is None, "scores of all tokens are for one process"
        bias = None if self.bias is None else self.bias[: self.vocab_size]
        return F.linear(hidden, self.weight[: self.vocab_size], bias)

    def flops_per_label(self) -> int:
        """Floating-point operations of forward and backward for one label."""
        return 6 * self.vocab_size * self.in_features


class LanguageModelHead(Head):
    """Scores of the next token at each position.

    Args:
        backbone: whose hidden states it takes; see `VocabularyProjection`.
        terms: what is added to the loss in training.
    """

    def __init__(self, backbone: Backbone, terms: LossTerms = PLAIN) -> None:
        super().__init__()
        self.projection = VocabularyProjection(backbone, bias=False, terms=terms)

    def sums(self, hidden_BTD: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Sums over the labelled positions: `loss`, cross-entropies."""
        loss, _ = self.projection.loss(*labelled(hidden_BTD, batch))
        return {"loss": loss}

    def predict(self, hidden_BTD: Tensor, batch: Batch) -> Tensor:
        """Logits over the real tokens, (B, T, V)."""
        logits_BTV: Tensor = self.projection(hidden_BTD)
        return logits_BTV

    def flops_per_label(self) -> int:
        """Floating-point operations of forward and backward for one label."""
        return self.projection.flops_per_label()

    def tensor_plan(self) -> TensorPlan:
        """The vocabulary is shared out."""
        return {"": Split.gather_whole, "projection": Split.vocabulary}


class MaskedProjection(nn.Module):
    """Hidden states -> scores of all tokens by way of one more layer (Devlin et al. 2019, as released).

    Args:
        backbone: whose hidden states it takes; see `VocabularyProjection`.
        terms: what is added to the loss in training.
    """

    def __init__(self, backbone: Backbone, terms: LossTerms = PLAIN) -> None:
        super().__init__()
        self.dense = nn.Linear(backbone.dim, backbone.dim)
        self.activation = build_gelu(backbone.activation)
        self.norm = nn.LayerNorm(backbone.dim, eps=backbone.norm_eps)
        self.projection = VocabularyProjection(backbone, bias=True, terms=terms)

    def transform(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        transformed: Tensor = self.norm(self.activation(self.dense(hidden)))
        return transformed

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V), real tokens only."""
        logits: Tensor = self.projection(self.transform(hidden))
        return logits

    def flops_per_label(self) -> int:
        """Floating-point operations of forward and backward for one label."""
        return 6 * self.dense.weight.numel() + self.projection.flops_per_label()


class MaskedHead(Head):
    """Scores of the tokens behind the masks.

    Args:
        backbone: whose hidden states it takes.
        terms: what is added to the loss of the masked tokens in training.
    """

    sum_names: ClassVar[tuple[str, ...]] = ("loss", "correct")

    def __init__(self, backbone: Backbone, terms: LossTerms = PLAIN) -> None:
        super().__init__()
        self.masked = MaskedProjection(backbone, terms)

    def sums(self, hidden_BTD: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Sums over the labelled positions.

        Returns:
            loss: cross-entropies (fp32 scalar).
            correct: labels with the highest score (fp32 scalar, no gradient).
        """
        hidden_ND, labels_N = labelled(hidden_BTD, batch)
        transformed_ND = self.masked.transform(hidden_ND)
        loss, correct = self.masked.projection.loss(transformed_ND, labels_N, count_correct=True)
        assert correct is not None
        return {"loss": loss, "correct": correct}

    def predict(self, hidden_BTD: Tensor, batch: Batch) -> Tensor:
        """Logits over the real tokens at the selected positions, (B, M, V); at all if none are selected."""
        logits_BMV: Tensor = self.masked(select(hidden_BTD, batch.selected))
        return logits_BMV

    def flops_per_label(self) -> int:
        """Floating-point operations of forward and backward for one label."""
        return self.masked.flops_per_label()

    def tensor_plan(self) -> TensorPlan:
        """The vocabulary is shared out; what comes before it is small, and done by every process."""
        return {
            "": Split.gather_whole,
            "masked.dense": Split.whole,
            "masked.norm": Split.whole,
            "masked.projection": Split.vocabulary,
        }


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


class MaskedNextHead(MaskedHead):
    """Masked tokens, and whether the second segment of a sample follows the first.

    Args:
        backbone: whose hidden states it takes.
        terms: what is added to the loss of the masked tokens in training.
    """

    sum_names: ClassVar[tuple[str, ...]] = ("loss", "correct", "next_loss", "next_correct")

    def __init__(self, backbone: Backbone, terms: LossTerms = PLAIN) -> None:
        super().__init__(backbone, terms)
        self.pooler = Pooler(backbone.dim)
        self.next = Scores(backbone.dim, 2)

    def sums(self, hidden_BTD: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Sums over the labelled positions and over the samples.

        Returns:
            loss, correct: of the masked tokens, see `MaskedHead`.
            next_loss: cross-entropies of class 0 (it follows) and 1 (it does not) (fp32 scalar).
            next_correct: samples with the right class (fp32 scalar, no gradient).
        """
        assert batch.sample_labels is not None
        labels_N = batch.sample_labels.flatten()
        logits_N2 = self.predict_next(hidden_BTD, batch).flatten(0, 1)
        return super().sums(hidden_BTD, batch) | {
            "next_loss": F.cross_entropy(logits_N2, labels_N, ignore_index=IGNORE, reduction="sum"),
            "next_correct": (logits_N2.argmax(dim=1) == labels_N).sum().float(),
        }

    def predict_next(self, hidden_BTD: Tensor, batch: Batch) -> Tensor:
        """Logits of the two classes for each packed sample, (B, S, 2) fp32."""
        assert batch.first is not None
        logits_BS2: Tensor = self.next(self.pooler(select(hidden_BTD, batch.first)))
        return logits_BS2

    def tensor_plan(self) -> TensorPlan:
        """As without next sentences; every process judges them."""
        return {**super().tensor_plan(), "pooler.dense": Split.whole, "next": Split.whole}


class SampleHead(Head):
    """One class, several classes or numbers for each packed sample.

    Args:
        backbone: whose hidden states it takes.
        num_outputs: C, classes or numbers.
        pool: what stands for a sample: the state of its `first` position (which may be its last token, see
            `Batch.first`), or the mean over its tokens. An encoder's first state goes through a `Pooler`.
        target: label (cross-entropy), labels (binary cross-entropies) or number (squared error).
        weights: of each class in the loss; none is 1 for all.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_outputs: int,
        pool: Pool = Pool.auto,
        target: Target = Target.label,
        weights: Sequence[float] = (),
    ) -> None:
        super().__init__()
        assert len(weights) in (0, num_outputs), (len(weights), num_outputs)
        if pool is Pool.auto:
            pool = Pool.last if backbone.causal else Pool.first
        self.pool, self.target, self.weights = pool, target, ClassWeights(weights)
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
            return {
                "loss": F.cross_entropy(scores_NC, targets, weights, ignore_index=IGNORE, reduction="sum")
            }
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
