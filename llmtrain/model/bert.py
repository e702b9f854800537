"""BERT: encoder-only transformer.

With the defaults it is BERT (Devlin et al. 2019): learned positions, segment embeddings, LayerNorm on their
sum and after each sub-layer, exact GELU, biases. Pre-norm, rotary positions, GEGLU, no biases and local
attention in most layers make it like ModernBERT (Warner et al. 2024).

Deviations: the vocabulary is padded to a multiple; padded rows stay 0 and outside the softmax. The pooler
belongs to the heads that use it. ModernBERT leaves out the first norm of the first block, since the norm of
the embeddings stands before it, and has another rotary base in local layers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llmtrain.model.assembled import Backbone
from llmtrain.model.block import PostNormBlock, PreNormBlock
from llmtrain.model.layers.attention import document_mask, local_mask
from llmtrain.model.layers.dropout import Dropout
from llmtrain.model.layers.embedding import build_embedding
from llmtrain.model.layers.norm import build_norm
from llmtrain.model.layers.position import rotary_table
from llmtrain.schema.model import BERTConfig, Position


class BERT(Backbone):
    """The backbone: tokens -> hidden states.

    Args:
        config: with `vocab_size` resolved.
    """

    def __init__(self, config: BERTConfig) -> None:
        super().__init__()
        assert config.vocab_size is not None
        self.config = config
        self.causal = False
        self.vocab_size = config.vocab_size
        self.dim, self.norm_eps, self.dropout_rate = config.dim, config.norm_eps, config.dropout
        self.activation = config.activation
        self.tie_embeddings = True
        self.embedding = build_embedding(config.vocab_size, config.vocab_multiple, config.dim)
        learned = config.position is Position.learned
        self.position = nn.Embedding(config.max_positions, config.dim) if learned else None
        self.segment = nn.Embedding(config.num_segments, config.dim) if config.num_segments else None
        self.embedding_norm = build_norm(config.norm, config.dim, config.norm_eps, config.bias)
        self.dropout = Dropout(config.dropout)
        block = PreNormBlock if config.norm_first else PostNormBlock
        self.blocks = nn.ModuleList([block(config) for _ in range(config.num_layers)])
        self.norm: nn.Module = nn.Identity()
        if config.norm_first:
            self.norm = build_norm(config.norm, config.dim, config.norm_eps, config.bias)

    def forward(
        self,
        ids: Tensor,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        segments: Tensor | None = None,
    ) -> Tensor:
        """Hidden states after the last norm.

        Args:
            ids: (B, T) token ids.
            positions: (B, T); None means 0..T-1.
            documents: (B, T), attention stays inside each; None lets every token attend to all.
            segments: (B, T); None means 0 everywhere, and so does a model that knows one kind only.

        Returns:
            (B, T, D)
        """
        if positions is None:
            positions = torch.arange(ids.shape[1], device=ids.device)[None]
        x_BTD = self._embed(ids, positions, segments)
        rotation = None
        if self.position is None:
            rotation = rotary_table(positions, self.dim // self.config.num_heads, self.config.rotary_theta)
        masks = self._masks(ids, documents)
        for number, block in enumerate(self.blocks):
            x_BTD = block(x_BTD, masks[self.is_local(number)], rotation)
        return self.norm(x_BTD)

    def is_local(self, number: int) -> bool:
        """Whether a block looks only at its neighbourhood."""
        return self.config.local_window is not None and number % self.config.global_every != 0

    def _embed(self, ids: Tensor, positions: Tensor, segments: Tensor | None) -> Tensor:
        """Sum of the embeddings of token, position and segment, normalised, (B, T, D)."""
        x_BTD = self.embedding(ids)
        if self.position is not None:
            x_BTD = x_BTD + self.position(positions)
        if self.segment is not None:
            alike = segments is None or self.segment.num_embeddings == 1
            x_BTD = x_BTD + (self.segment.weight[0] if alike else self.segment(segments))
        return self.dropout(self.embedding_norm(x_BTD))

    def _masks(self, ids: Tensor, documents: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Where queries of global and of local blocks may look; made once for all blocks."""
        mask = None if documents is None else document_mask(documents, causal=False)
        if self.config.local_window is None:
            return mask, None
        near = local_mask(ids.shape[1], self.config.local_window, ids.device)
        return mask, near if mask is None else mask & near

    def init_std(self, name: str) -> float:
        """Standard deviation of a weight matrix at the start: the same everywhere (Devlin et al. 2019)."""
        return self.config.init_std

    def flops_per_token(self, sequence_length: int) -> int:
        """Floating-point operations of forward and backward for one token, without the head.

        6 per weight of a matrix and 12 d for every position that a layer looks at (Chowdhery et al. 2022,
        "PaLM", appendix B), padding and other documents of the row included; embeddings count nothing.
        """
        weights = sum(parameter.numel() for parameter in self.blocks.parameters())
        near = min(sequence_length, (self.config.local_window or 0) // 2 * 2 + 1)
        seen = sum(near if self.is_local(number) else sequence_length for number in range(len(self.blocks)))
        return 6 * weights + 12 * self.dim * seen
