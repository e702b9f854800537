"""Transformer blocks, for decoders and encoders alike."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from llmtrain.model.cache import BlockCache
from llmtrain.model.layers.attention import SelfAttention
from llmtrain.model.layers.dropout import Dropout
from llmtrain.model.layers.mlp import build_mlp
from llmtrain.model.layers.norm import build_norm
from llmtrain.model.layers.position import Rotation
from llmtrain.schema.model import TransformerConfig


class Block(nn.Module, ABC):
    """Attention and a feed-forward layer, each added to the stream; where the norms stand is the subclass's.

    Args:
        config: of the model.
        num_kv_heads: G, heads of keys and values. Default: as many as heads.
    """

    def __init__(self, config: TransformerConfig, num_kv_heads: int | None = None) -> None:
        super().__init__()
        self.attention_norm = build_norm(config.norm, config.dim, config.norm_eps, config.bias)
        self.attention = SelfAttention(
            config.dim,
            config.num_heads,
            num_kv_heads or config.num_heads,
            config.bias if config.qkv_bias is None else config.qkv_bias,
            config.dropout,
            config.causal,
            config.head_dim,
            config.bias if config.out_bias is None else config.out_bias,
            config.norm_eps if config.query_key_norm else None,
        )
        self.mlp_norm = build_norm(config.norm, config.dim, config.norm_eps, config.bias)
        self.mlp = build_mlp(config.dim, config.hidden_dim, config.activation, config.bias)
        self.dropout = Dropout(config.dropout)

    @abstractmethod
    def forward(
        self,
        x_BTD: Tensor,
        mask: Tensor | None,
        rotation: Rotation | None,
        cache: BlockCache | None = None,
    ) -> Tensor:
        """(B, T, D) -> (B, T, D)."""


class PreNormBlock(Block):
    """x + attention(norm(x)), then x + mlp(norm(x)): GPT-2 and later models."""

    def forward(
        self,
        x_BTD: Tensor,
        mask: Tensor | None,
        rotation: Rotation | None,
        cache: BlockCache | None = None,
    ) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        x_BTD = x_BTD + self.dropout(self.attention(self.attention_norm(x_BTD), mask, rotation, cache))
        return x_BTD + self.dropout(self.mlp(self.mlp_norm(x_BTD)))


class PostNormBlock(Block):
    """norm(x + attention(x)), then norm(x + mlp(x)): the first transformers and BERT."""

    def forward(
        self,
        x_BTD: Tensor,
        mask: Tensor | None,
        rotation: Rotation | None,
        cache: BlockCache | None = None,
    ) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        x_BTD = self.attention_norm(x_BTD + self.dropout(self.attention(x_BTD, mask, rotation, cache)))
        return self.mlp_norm(x_BTD + self.dropout(self.mlp(x_BTD)))
