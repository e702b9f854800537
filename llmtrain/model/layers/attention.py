"""Self-attention."""

from __future__ import annotations

import os

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmtrain.model.kernels.attention import short_attention
from llmtrain.model.layers.position import Rotation, rotate

SHORT = 512
"""Up to so many tokens in a row explicit products in bf16 are faster on a CPU; with dropout always."""


def document_mask(documents_BT: Tensor, causal: bool) -> Tensor:
    """Where a query may look when attention stays inside documents: (B, 1, T, T) bool."""
    same = documents_BT[:, None, :, None] == documents_BT[:, None, None, :]
    return same.tril() if causal else same


def local_mask(length: int, window: int, device: torch.device) -> Tensor:
    """Where a query may look when it sees only half a window to each side: (1, 1, T, T) bool."""
    places = torch.arange(length, device=device)
    return ((places[:, None] - places).abs() <= window // 2)[None, None]


def attention(
    q_BHTK: Tensor,
    k_BGTK: Tensor,
    v_BGTK: Tensor,
    mask: Tensor | None,
    dropout: float = 0.0,
    causal: bool = True,
) -> Tensor:
    """Scaled dot-product attention; every route to a faster kernel goes through here.

    Args:
        q_BHTK: queries of H heads.
        k_BGTK: keys of G heads; H is a multiple of G (grouped-query attention).
        v_BGTK: values of G heads.
        mask: (B or 1, 1, T, T) bool, True where a query may look; it holds what `causal` asks for. None
            lets a query look at all keys, or with `causal` at those up to its own place.
        dropout: probability of dropping an attention weight.
        causal: what None means.

    Returns:
        (B, H, T, K)
    """
    if _explicit_is_faster(q_BHTK, k_BGTK, dropout):
        if mask is None and causal:
            length = q_BHTK.shape[2]
            mask = q_BHTK.new_ones((1, 1, length, length), dtype=torch.bool).tril()
        return short_attention(q_BHTK, k_BGTK, v_BGTK, mask, dropout)
    return F.scaled_dot_product_attention(
        q_BHTK,
        k_BGTK,
        v_BGTK,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=causal and mask is None,
        enable_gqa=q_BHTK.shape[1] != k_BGTK.shape[1],
    )


def _explicit_is_faster(q_BHTK: Tensor, k_BGTK: Tensor, dropout: float) -> bool:
    """Whether explicit products beat PyTorch's kernel; measured in `kernels/attention.py`."""
    return (
        q_BHTK.device.type == "cpu"
        and q_BHTK.shape == k_BGTK.shape
        and (dropout > 0 or (q_BHTK.dtype == torch.bfloat16 and q_BHTK.shape[2] <= SHORT))
        and os.environ.get("LLMTRAIN_KERNELS") != "0"
    )


class AttentionCore(nn.Module):
    """What is between the projections of an attention layer; layouts that share out heads hook in here.

    Args:
        dropout: on attention weights.
        causal: whether a position sees only what stands before it.
    """

    def __init__(self, dropout: float, causal: bool) -> None:
        super().__init__()
        self.dropout, self.causal = dropout, causal

    def forward(self, q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, mask: Tensor | None) -> Tensor:
        """See `attention`; (B, H, T, K)."""
        dropout = self.dropout if self.training else 0.0
        return attention(q_BHTK, k_BGTK, v_BGTK, mask, dropout, self.causal)


class SelfAttention(nn.Module):
    """Multi-head self-attention with optional grouped keys and values and rotary positions.

    Queries, keys and values have weights of their own, so that every parallel layout can cut them by
    heads; they are multiplied in one product where that is faster.

    Args:
        dim: D.
        num_heads: H, query heads.
        num_kv_heads: G, heads of keys and values.
        bias: whether the projections have biases.
        dropout: on attention weights.
        causal: whether a position sees only what stands before it.
    """

    def __init__(
        self, dim: int, num_heads: int, num_kv_heads: int, bias: bool, dropout: float, causal: bool
    ) -> None:
        super().__init__()
        self.head_dim = dim // num_heads
        self.query = nn.Linear(dim, num_heads * self.head_dim, bias=bias)
        self.key = nn.Linear(dim, num_kv_heads * self.head_dim, bias=bias)
        self.value = nn.Linear(dim, num_kv_heads * self.head_dim, bias=bias)
        self.core = AttentionCore(dropout, causal)
        self.out = nn.Linear(num_heads * self.head_dim, dim, bias=bias)

    def forward(self, x_BTD: Tensor, mask: Tensor | None, rotation: Rotation | None) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        q_BHTK, k_BGTK, v_BGTK = (
            projected.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projected in fused_linear(x_BTD, self.query, self.key, self.value)
        )
        if rotation is not None:
            q_BHTK, k_BGTK = rotate(q_BHTK, rotation), rotate(k_BGTK, rotation)
        y_BHTK = self.core(q_BHTK, k_BGTK, v_BGTK, mask)
        return self.out(y_BHTK.transpose(1, 2).flatten(2))


def fused_linear(x: Tensor, *layers: nn.Linear) -> tuple[Tensor, ...]:
    """Several linear layers on one input as one matrix product.

    The weights are joined anew in each call: they are small beside the activations, and one product
    reads (and under autocast casts) the input once. Layers that are more than their weights (shared out
    over processes) are called one by one.
    """
    if type(x) is not Tensor:
        return tuple(layer(x) for layer in layers)
    weight = torch.cat([layer.weight for layer in layers])
    bias = None if layers[0].bias is None else torch.cat([layer.bias for layer in layers])
    return F.linear(x, weight, bias).split([layer.out_features for layer in layers], dim=-1)
