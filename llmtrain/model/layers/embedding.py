"""Token embeddings whose rows are padded to a size that matrix units like."""

from __future__ import annotations

from torch import nn


def padded_size(vocab_size: int, multiple: int) -> int:
    """`vocab_size` rounded up to a multiple."""
    return -(-vocab_size // multiple) * multiple


def build_embedding(vocab_size: int | None, multiple: int, dim: int) -> nn.Embedding:
    """An embedding for V tokens, with rows that pad it.

    Args:
        vocab_size: V, resolved.
        multiple: the number of rows is a multiple of it.
        dim: D.
    """
    assert vocab_size is not None, "the vocabulary is not resolved"
    return nn.Embedding(padded_size(vocab_size, multiple), dim)
