"""The transformer block."""

from __future__ import annotations

from torch import Tensor, nn

from llmtrain.model.layers.attention import SelfAttention
from llmtrain.model.layers.mlp import build_mlp
from llmtrain.model.layers.norm import build_norm
from llmtrain.model.layers.position import Rotation
from llmtrain.schema.groups import GPTConfig


class DecoderBlock(nn.Module):
    """Pre-norm block: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        kv_heads = config.num_kv_heads or config.num_heads
        self.attention_norm = build_norm(config.norm, config.dim, config.norm_eps, config.bias)
        self.attention = SelfAttention(config.dim, config.num_heads, kv_heads, config.bias, config.dropout)
        self.mlp_norm = build_norm(config.norm, config.dim, config.norm_eps, config.bias)
        self.mlp = build_mlp(config.dim, config.hidden_dim, config.activation, config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor, mask: Tensor | None, rotation: Rotation | None) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        x_BTD = x_BTD + self.dropout(self.attention(self.attention_norm(x_BTD), mask, rotation))
        return x_BTD + self.dropout(self.mlp(self.mlp_norm(x_BTD)))
