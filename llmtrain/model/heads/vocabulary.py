"""Heads that score the tokens of the vocabulary: language models, masked tokens, next sentences.

Losses are summed in fp32 whatever the format of the products.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from llmtrain.data.batch import IGNORE, Batch
from llmtrain.model.assembled import Backbone, Head
from llmtrain.model.heads.parts import Pooler, Scores, labelled, select
from llmtrain.model.kernels.linear_cross_entropy import (
    PLAIN,
    LossTerms,
    VocabularyShard,
    linear_cross_entropy,
)
from llmtrain.model.kernels.loops import EAGER, Loops
from llmtrain.model.layers.mlp import build_activation
from llmtrain.model.plan import Split, TensorPlan


def local(parameter: Any) -> Tensor | None:
    """The share of a parameter that this process has, as a plain tensor."""
    return None if parameter is None else parameter.to_local()


class VocabularyProjection(nn.Linear):
    """Hidden states -> scores of all tokens.

    Args:
        backbone: its embedding's weight is the projection's too where `tie_embeddings` says so. Rows of
            the weight beyond its vocabulary stay outside the softmax.
        bias: whether there is one for each token.
        terms: what is added to the loss in training.

    Attributes:
        shard: which tokens are those of this process, where several share the vocabulary.
        loops: of the loss, eager or compiled.
    """

    shard: VocabularyShard | None = None
    loops: Loops = EAGER

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
            hidden_ND, weight, labels_N, vocab_size, bias, count_correct, self.shard, terms, self.loops
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
        self.activation = build_activation(backbone.activation)
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
