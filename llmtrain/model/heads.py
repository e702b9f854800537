"""Heads: from hidden states to sums of losses, or to predictions."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from llmtrain.model.assembled import Head
from llmtrain.model.kernels.linear_cross_entropy import linear_cross_entropy


class LanguageModelHead(Head):
    """Projects hidden states onto the vocabulary.

    Args:
        dim: D.
        vocab_size: V, real tokens; rows of the weight beyond it stay outside the softmax.
        padded_vocab_size: rows of the weight, which may be tied to the token embedding afterwards.
    """

    def __init__(self, dim: int, vocab_size: int, padded_vocab_size: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.projection = nn.Linear(dim, padded_vocab_size, bias=False)

    def forward(self, hidden_BTD: Tensor, labels_BM: Tensor, selected_BM: Tensor | None) -> dict[str, Tensor]:
        """Sums over the labelled positions.

        Args:
            hidden_BTD: hidden states.
            labels_BM: token to predict, or IGNORE.
            selected_BM: position of each label; None means that M = T.

        Returns:
            loss: sum of cross-entropies (fp32 scalar).
        """
        if selected_BM is not None:
            index = selected_BM[..., None].expand(-1, -1, hidden_BTD.shape[-1])
            hidden_BTD = hidden_BTD.gather(1, index)
        loss = linear_cross_entropy(
            hidden_BTD.flatten(0, 1), self.projection.weight, labels_BM.flatten(), self.vocab_size
        )
        return {"loss": loss}

    def predict(self, hidden_BTD: Tensor) -> Tensor:
        """Logits over the real tokens, (B, T, V)."""
        return F.linear(hidden_BTD, self.projection.weight[: self.vocab_size])

    def flops_per_token(self) -> int:
        """Floating-point operations of forward and backward for one labelled token."""
        return 6 * self.vocab_size * self.projection.in_features
