"""Token embeddings whose rows are padded to a size that matrix units like."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llmtrain.model.kernels.lookup import sparse_lookup


def padded_size(vocab_size: int, multiple: int) -> int:
    """`vocab_size` rounded up to a multiple."""
    return -(-vocab_size // multiple) * multiple


class TokenEmbedding(nn.Embedding):
    """Like `nn.Embedding`.

    Attributes:
        sparse_gradient: whether the gradient of the weight holds only the rows that occur. Whoever says so
            has to keep a dense gradient that it is added to.
    """

    weight: nn.Parameter
    sparse_gradient = False

    def forward(self, input: Tensor) -> Tensor:
        """Ids of any shape -> (..., D)."""
        if self.sparse_gradient and torch.is_grad_enabled():
            return sparse_lookup(input, self.weight)
        return super().forward(input)


def build_embedding(vocab_size: int | None, multiple: int, dim: int) -> TokenEmbedding:
    """An embedding for V tokens, with rows that pad it.

    Args:
        vocab_size: V, resolved.
        multiple: the number of rows is a multiple of it.
        dim: D.
    """
    assert vocab_size is not None, "the vocabulary is not resolved"
    return TokenEmbedding(padded_size(vocab_size, multiple), dim)
