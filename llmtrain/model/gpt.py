"""GPT: decoder-only transformer.

With the defaults it is GPT-2 (Radford et al. 2019): learned positions, LayerNorm before each
sub-layer, tanh GELU, biases, tied head. Rotary positions, RMSNorm, SwiGLU, grouped-query heads and no
biases make it Llama-like (Touvron et al. 2023).

Deviations from GPT-2: the vocabulary is padded to a multiple; padded rows stay 0 and outside the
softmax. Queries, keys and values have separate weights (GPT-2 stores them joined).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from llmtrain.model.assembled import Backbone
from llmtrain.model.block import PreNormBlock
from llmtrain.model.layers.attention import document_mask
from llmtrain.model.layers.dropout import Dropout
from llmtrain.model.layers.embedding import build_embedding
from llmtrain.model.layers.norm import build_norm
from llmtrain.model.layers.position import rotary_table
from llmtrain.schema.model import GPTConfig, Position


class GPT(Backbone):
    """The backbone: tokens -> hidden states.

    Args:
        config: with `vocab_size` resolved.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        assert config.vocab_size is not None
        self.config = config
        self.causal = True
        self.vocab_size = config.vocab_size
        self.dim, self.norm_eps, self.dropout_rate = config.dim, config.norm_eps, config.dropout
        self.tie_embeddings = config.tie_embeddings
        self.activation = config.activation
        self.embedding = build_embedding(config.vocab_size, config.vocab_multiple, config.dim)
        learned = config.position is Position.learned
        self.position = nn.Embedding(config.max_positions, config.dim) if learned else None
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            [PreNormBlock(config, config.num_kv_heads) for _ in range(config.num_layers)]
        )
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
            documents: (B, T); None lets every token attend to all before it.
            segments: not used.

        Returns:
            (B, T, D)
        """
        if positions is None:
            positions = torch.arange(ids.shape[1], device=ids.device)[None]
        x_BTD = self.embedding(ids)
        rotation = None
        if self.position is not None:
            x_BTD = x_BTD + self.position(positions)
        else:
            head_dim = self.config.dim // self.config.num_heads
            rotation = rotary_table(positions, head_dim, self.config.rotary_theta)
        mask = None if documents is None else document_mask(documents, causal=True)
        x_BTD = self.dropout(x_BTD)
        for block in self.blocks:
            x_BTD = block(x_BTD, mask, rotation)
        return self.norm(x_BTD)

    def init_std(self, name: str) -> float:
        """Standard deviation of a weight matrix at the start.

        Projections that end a residual branch get it divided by sqrt(2L), since L blocks add two
        branches each to the stream (GPT-2, section 2.3).
        """
        if name.endswith(("attention.out.weight", "mlp.down.weight")):
            return self.config.init_std / math.sqrt(2 * self.config.num_layers)
        return self.config.init_std

    def flops_per_token(self, sequence_length: int) -> int:
        """Floating-point operations of forward and backward for one token, without the head.

        6 per weight of a matrix and 12 L d T for attention (Chowdhery et al. 2022, "PaLM", appendix B);
        the embeddings are look-ups and count nothing.
        """
        weights = sum(parameter.numel() for parameter in self.blocks.parameters())
        return 6 * weights + 12 * self.config.num_layers * self.config.dim * sequence_length
