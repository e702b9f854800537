"""BERT: encoder-only transformer.

With the defaults it is BERT (Devlin et al. 2019): learned positions, segment embeddings, LayerNorm on their
sum and after each sub-layer, exact GELU, biases. Pre-norm, rotary positions, GEGLU, no biases and local
attention in most layers make it like ModernBERT (Warner et al. 2024).

Deviations: the vocabulary is padded to a multiple; padded rows stay 0 and outside the softmax. The pooler
belongs to the heads that use it. ModernBERT leaves out the first norm of the first block, since the norm of
the embeddings stands before it, and has another rotary base in local layers.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from llmtrain.data.batch import Batch
from llmtrain.model.block import PostNormBlock, PreNormBlock
from llmtrain.model.layers.attention import document_mask, local_mask
from llmtrain.model.layers.norm import build_norm
from llmtrain.model.transformer import Transformer
from llmtrain.schema.model import BERTConfig


class BERT(Transformer):
    """The backbone: tokens -> hidden states.

    Args:
        config: with `vocab_size` resolved.
    """

    config: BERTConfig

    def __init__(self, config: BERTConfig) -> None:
        super().__init__(config, tie_embeddings=True)
        self.segment = nn.Embedding(config.num_segments, config.dim) if config.num_segments else None
        self.embedding_norm = build_norm(config.norm, config.dim, config.norm_eps, config.bias)
        block = PreNormBlock if config.norm_first else PostNormBlock
        self.blocks = nn.ModuleDict({str(number): block(config) for number in range(config.num_layers)})
        self.norm: nn.Module = nn.Identity()
        if config.norm_first:
            self.norm = build_norm(config.norm, config.dim, config.norm_eps, config.bias)

    def embed(self, batch: Batch) -> Tensor:
        """Sum of the embeddings of token, position and segment, normalised, (B, T, D).

        Without segments, or in a model that knows one kind only, all tokens are of segment 0.
        """
        x_BTD = self.embed_tokens(batch)
        if self.segment is not None:
            segments = batch.segments
            if segments is None or self.segment.num_embeddings == 1:
                segments = batch.ids.new_zeros((1, batch.ids.shape[1]))
            x_BTD = x_BTD + self.segment(segments)
        x_BTD = self.dropout(self.embedding_norm(x_BTD))
        return x_BTD

    def is_local(self, number: int) -> bool:
        """Whether a block looks only at its neighbourhood."""
        return self.config.local_window is not None and number % self.config.global_every != 0

    def masks(self, batch: Batch) -> Mapping[str, Tensor | None]:
        """Global blocks look at their document, local ones at their neighbourhood in it."""
        documents = batch.documents
        mask = near = None if documents is None else document_mask(documents, causal=False)
        if self.config.local_window is not None:
            side = self.config.local_window // 2
            near = local_mask(self.row_length(batch), side, side, batch.ids.device)
            near = near if mask is None else mask & near
        return {number: near if self.is_local(int(number)) else mask for number in self.blocks}

    def init_std(self, name: str) -> float:
        """Standard deviation of a weight matrix at the start: the same everywhere (Devlin et al. 2019)."""
        return self.config.init_std

    def flops_per_token(self, sequence_length: int) -> int:
        """Floating-point operations of forward and backward for one token, without the head.

        6 per weight of a matrix and 12 H K for every position that a layer looks at (Chowdhery et al. 2022,
        "PaLM", appendix B), padding and other documents of the row included; embeddings count nothing.
        """
        weights = sum(parameter.numel() for parameter in self.blocks.parameters())
        near = min(sequence_length, (self.config.local_window or 0) // 2 * 2 + 1)
        seen = sum(near if self.is_local(number) else sequence_length for number in range(len(self.blocks)))
        return 6 * weights + 12 * self.config.num_heads * self.config.head_width * seen
