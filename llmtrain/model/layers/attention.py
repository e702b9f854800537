"""Self-attention."""

from __future__ import annotations

import os

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmtrain.model.cache import BlockCache
from llmtrain.model.kernels.attention import short_attention
from llmtrain.model.layers.lora import LoRALinear
from llmtrain.model.layers.norm import RMSNorm
from llmtrain.model.layers.position import Rotation, rotate

SHORT = 512
"""Up to so many tokens in a row explicit products in bf16 are faster on a CPU; with dropout always."""


FEW = 32
"""Up to so many tokens it is dearer to join weights than to read the tokens again."""


def document_mask(documents_BT: Tensor, causal: bool) -> Tensor:
    """Where a query may look when attention stays inside documents: (B, 1, T, T) bool."""
    same = documents_BT[:, None, :, None] == documents_BT[:, None, None, :]
    return same.tril() if causal else same


def local_mask(length: int, behind: int, ahead: int, device: torch.device) -> Tensor:
    """Where a query may look when it sees only so many tokens on each side of it: (1, 1, T, T) bool."""
    places = torch.arange(length, device=device)
    distance = places[:, None] - places
    return ((distance <= behind) & (distance >= -ahead))[None, None]


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
        causal: no query looks behind its own place, whether there is a mask or not.

    Returns:
        (B, H, T, K)
    """
    if _explicit_is_faster(q_BHTK, k_BGTK, dropout):
        return short_attention(q_BHTK, k_BGTK, v_BGTK, mask, dropout, causal)
    return F.scaled_dot_product_attention(
        q_BHTK,
        k_BGTK,
        v_BGTK,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=causal and mask is None,
        enable_gqa=q_BHTK.shape[1] != k_BGTK.shape[1],
    )


def cached_attention(q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of the newest tokens with all that were read.

    Args:
        q_BHTK: queries of the newest tokens.
        k_BGSK: keys of all.
        v_BGSK: values of all.
        mask: (B, 1, T, S) bool, where a query may look; None lets the query of a single token look at all,
            and those of several, which have no past, at those up to their own place.

    Returns:
        (B, H, T, K)
    """
    (rows, heads, length, _), groups = q_BHTK.shape, k_BGSK.shape[1]
    if length > 1:
        return attention(q_BHTK, k_BGSK, v_BGSK, mask)
    # Queries that share a head of keys stand below each other, so that no key is copied for them.
    q_BGRK = q_BHTK.reshape(rows, groups, heads // groups, -1)
    return attention(q_BGRK, k_BGSK, v_BGSK, mask, causal=False).reshape(q_BHTK.shape)


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
        qkv_bias: whether the projections to queries, keys and values have biases.
        dropout: on attention weights.
        causal: whether a position sees only what stands before it.
        head_dim: K. Default: dim / num_heads.
        out_bias: whether the last projection has a bias. Default: as the others.
        norm_eps: normalise the query and the key of each head (Henry et al. 2020), with this added to the
            variance. Default: do not.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_kv_heads: int,
        qkv_bias: bool,
        dropout: float,
        causal: bool,
        head_dim: int | None = None,
        out_bias: bool | None = None,
        norm_eps: float | None = None,
    ) -> None:
        super().__init__()
        self.head_dim = head_dim or dim // num_heads
        self.query = nn.Linear(dim, num_heads * self.head_dim, bias=qkv_bias)
        self.key = nn.Linear(dim, num_kv_heads * self.head_dim, bias=qkv_bias)
        self.value = nn.Linear(dim, num_kv_heads * self.head_dim, bias=qkv_bias)
        self.query_norm: nn.Module = nn.Identity()
        self.key_norm: nn.Module = nn.Identity()
        if norm_eps is not None:
            self.query_norm = RMSNorm(self.head_dim, eps=norm_eps)
            self.key_norm = RMSNorm(self.head_dim, eps=norm_eps)
        self.core = AttentionCore(dropout, causal)
        out_bias = qkv_bias if out_bias is None else out_bias
        self.out = nn.Linear(num_heads * self.head_dim, dim, bias=out_bias)

    def forward(
        self,
        x_BTD: Tensor,
        mask: Tensor | None,
        rotation: Rotation | None,
        cache: BlockCache | None = None,
    ) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        q_BHTK, k_BGTK, v_BGTK = (
            projected.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projected in fused_linear(x_BTD, self.query, self.key, self.value)
        )
        q_BHTK, k_BGTK = self.query_norm(q_BHTK), self.key_norm(k_BGTK)
        if rotation is not None:
            q_BHTK, k_BGTK = rotate(q_BHTK, rotation), rotate(k_BGTK, rotation)
        if cache is None:
            y_BHTK = self.core(q_BHTK, k_BGTK, v_BGTK, mask)
        else:
            y_BHTK = cached_attention(q_BHTK, *cache.keep(k_BGTK, v_BGTK), mask)
        return self.out(y_BHTK.transpose(1, 2).flatten(2))


def fused_linear(x: Tensor, *layers: nn.Linear) -> tuple[Tensor, ...]:
    """Several linear layers on one input as one matrix product.

    The weights are joined anew in each call: they are small beside the activations, and one product
    reads (and under autocast casts) the input once. Layers that are more than their weights (shared out
    over processes) are called one by one; the changes that adapters make are added. So are they for a few
    tokens that nothing is learned from, where weights are most of what is read.
    """
    few = not torch.is_grad_enabled() and x.shape[:-1].numel() <= FEW
    if type(x) is not Tensor or few:
        return tuple(layer(x) for layer in layers)
    weights: list[Tensor] = [layer.weight for layer in layers]
    if torch.is_autocast_enabled(x.device.type):  # half as much is to be joined
        weights = [one.to(torch.get_autocast_dtype(x.device.type)) for one in weights]
    weight = torch.cat(weights)
    bias = None if layers[0].bias is None else torch.cat([layer.bias for layer in layers])
    parts = F.linear(x, weight, bias).split([layer.out_features for layer in layers], dim=-1)
    return tuple(
        part + layer.change(x) if isinstance(layer, LoRALinear) else part
        for part, layer in zip(parts, layers, strict=True)
    )
