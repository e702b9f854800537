"""A backbone with a head: what is trained, saved and loaded."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from llmtrain.data.batch import Batch
from llmtrain.schema.model import Activation


class Backbone(nn.Module, ABC):
    """Tokens -> hidden states. Plain single-device PyTorch; layouts are applied from outside.

    Attributes:
        causal: whether a position sees only what stands before it.
        embedding: token embedding, with the rows that pad the vocabulary.
        blocks: the repeated part: what is compiled and wrapped one by one.
        vocab_size: real tokens; embedding rows from there on stay 0.
        dim: D, width of the hidden states.
        norm_eps: of its norms, for heads that have one too.
        activation: of its feed-forward layers, for heads that have one too.
        tie_embeddings: whether an output projection shares the weight of the embedding.
        dropout_rate: for heads.
    """

    causal: bool
    embedding: nn.Embedding
    blocks: nn.ModuleList
    vocab_size: int
    dim: int
    norm_eps: float
    activation: Activation
    tie_embeddings: bool
    dropout_rate: float

    @abstractmethod
    def forward(
        self,
        ids: Tensor,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        segments: Tensor | None = None,
    ) -> Tensor:
        """(B, T) ids, positions, document numbers, segments -> (B, T, D) hidden states.

        A family without segment embeddings does not look at `segments`.
        """

    @abstractmethod
    def init_std(self, name: str) -> float:
        """Standard deviation of the weight matrix of this name at the start."""

    @abstractmethod
    def flops_per_token(self, sequence_length: int) -> int:
        """Floating-point operations of forward and backward for one token."""


class Head(nn.Module, ABC):
    """Hidden states -> sums of losses, or predictions; selection, projection and loss in one module."""

    @abstractmethod
    def forward(self, hidden_BTD: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Sums over what carries labels in the batch, by name."""

    @abstractmethod
    def predict(self, hidden_BTD: Tensor, batch: Batch) -> Tensor:
        """Scores; their shape is the head's."""

    @abstractmethod
    def flops_per_label(self) -> int:
        """Floating-point operations of forward and backward for one label."""


class Assembled(nn.Module):
    """Keys are `backbone.*` and `head.*` in every family; fine-tuning loads `backbone.*`."""

    backbone: Backbone
    head: Head

    def __init__(self, backbone: Backbone, head: Head) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The head's sums for a batch."""
        sums: dict[str, Tensor] = self.head(self.hidden(batch), batch)
        return sums

    def predict(self, batch: Batch) -> Tensor:
        """The head's scores for a batch."""
        return self.head.predict(self.hidden(batch), batch)

    def hidden(self, batch: Batch) -> Tensor:
        """Hidden states of a batch, (B, T, D)."""
        hidden_BTD: Tensor = self.backbone(batch.ids, batch.positions, batch.documents, batch.segments)
        return hidden_BTD

    def num_parameters(self) -> int:
        """Number of parameters, tied ones counted once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def flops_per_token(self, sequence_length: int, labelled_share: float) -> float:
        """Floating-point operations of a training step for one token.

        Args:
            sequence_length: of a row; attention looks so far.
            labelled_share: labels for each token.
        """
        return self.backbone.flops_per_token(sequence_length) + labelled_share * self.head.flops_per_label()
