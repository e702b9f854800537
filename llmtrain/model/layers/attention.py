"""Causal self-attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmtrain.model.layers.position import Rotation, rotate


def document_mask(documents_BT: Tensor) -> Tensor:
    """Where a query may look when attention stays inside documents: (B, 1, T, T) bool."""
    same = documents_BT[:, None, :, None] == documents_BT[:, None, None, :]
    return same.tril()


def attention(
    q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, mask: Tensor | None, dropout: float = 0.0
) -> Tensor:
    """Scaled dot-product attention, causal; every route to a faster kernel goes through here.

    Args:
        q_BHTK: queries of H heads.
        k_BGTK: keys of G heads; H is a multiple of G (grouped-query attention).
        v_BGTK: values of G heads.
        mask: (B, 1, T, T) bool as made by `document_mask`, or None for plain causal attention.
        dropout: probability of dropping an attention weight.

    Returns:
        (B, H, T, K)
    """
    return F.scaled_dot_product_attention(
        q_BHTK,
        k_BGTK,
        v_BGTK,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=mask is None,
        enable_gqa=q_BHTK.shape[1] != k_BGTK.shape[1],
    )


class SelfAttention(nn.Module):
    """Multi-head causal attention with optional grouped keys and values and rotary positions.

    Queries, keys and values have weights of their own, so that every parallel layout can cut them by
    heads; they are multiplied in one product where that is faster.

    Args:
        dim: D.
        num_heads: H, query heads.
        num_kv_heads: G, heads of keys and values.
        bias: whether the projections have biases.
        dropout: on attention weights.
    """

    def __init__(self, dim: int, num_heads: int, num_kv_heads: int, bias: bool, dropout: float) -> None:
        super().__init__()
        self.head_dim = dim // num_heads
        self.dropout = dropout
        self.query = nn.Linear(dim, num_heads * self.head_dim, bias=bias)
        self.key = nn.Linear(dim, num_kv_heads * self.head_dim, bias=bias)
        self.value = nn.Linear(dim, num_kv_heads * self.head_dim, bias=bias)
        self.out = nn.Linear(num_heads * self.head_dim, dim, bias=bias)

    def forward(self, x_BTD: Tensor, mask: Tensor | None, rotation: Rotation | None) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        q_BHTK, k_BGTK, v_BGTK = (
            projected.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projected in fused_linear(x_BTD, self.query, self.key, self.value)
        )
        if rotation is not None:
            q_BHTK, k_BGTK = rotate(q_BHTK, rotation), rotate(k_BGTK, rotation)
        dropout = self.dropout if self.training else 0.0
        y_BHTK = attention(q_BHTK, k_BGTK, v_BGTK, mask, dropout)
        return self.out(y_BHTK.transpose(1, 2).flatten(2))


def fused_linear(x: Tensor, *layers: nn.Linear) -> tuple[Tensor, ...]:
    """Several linear layers on one input as one matrix product.

    The weights are joined anew in each call: they are small beside the activations, and one product
    reads (and under autocast casts) the input once.
    """
    weight = torch.cat([layer.weight for layer in layers])
    bias = None if layers[0].bias is None else torch.cat([layer.bias for layer in layers])
    return F.linear(x, weight, bias).split([layer.out_features for layer in layers], dim=-1)
