"""A backbone with a head: what is trained, saved and loaded."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from llmtrain.data.batch import Batch


class Backbone(nn.Module, ABC):
    """Tokens -> hidden states. Plain single-device PyTorch; layouts are applied from outside.

    Attributes:
        embedding: token embedding, with the rows that pad the vocabulary.
        blocks: the repeated part: what is compiled and wrapped one by one.
        vocab_size: real tokens; embedding rows from there on stay 0.
    """

    embedding: nn.Embedding
    blocks: nn.ModuleList
    vocab_size: int

    @abstractmethod
    def forward(
        self, ids: Tensor, positions: Tensor | None = None, documents: Tensor | None = None
    ) -> Tensor:
        """(B, T) ids, positions, document numbers -> (B, T, D) hidden states."""

    @abstractmethod
    def init_std(self, name: str) -> float:
        """Standard deviation of the weight matrix of this name at the start."""

    @abstractmethod
    def flops_per_token(self, sequence_length: int) -> int:
        """Floating-point operations of forward and backward for one token."""


class Head(nn.Module, ABC):
    """Hidden states -> sums of losses, or predictions; selection, projection and loss in one module."""

    @abstractmethod
    def forward(self, hidden_BTD: Tensor, labels_BM: Tensor, selected_BM: Tensor | None) -> dict[str, Tensor]:
        """Sums over the labelled positions, by name."""

    @abstractmethod
    def predict(self, hidden_BTD: Tensor) -> Tensor:
        """Scores at every position, (B, T, V)."""

    @abstractmethod
    def flops_per_token(self) -> int:
        """Floating-point operations of forward and backward for one labelled token."""


class Assembled(nn.Module):
    """Keys are `backbone.*` and `head.*` in every family; fine-tuning loads `backbone.*` alone."""

    backbone: Backbone
    head: Head

    def __init__(self, backbone: Backbone, head: Head) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The head's sums for a batch."""
        hidden_BTD = self.backbone(batch.ids, batch.positions, batch.documents)
        sums: dict[str, Tensor] = self.head(hidden_BTD, batch.labels, batch.selected)
        return sums

    def num_parameters(self) -> int:
        """Number of parameters, tied ones counted once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def flops_per_token(self, sequence_length: int) -> int:
        """Floating-point operations of a training step for one token that carries a label."""
        return self.backbone.flops_per_token(sequence_length) + self.head.flops_per_token()
