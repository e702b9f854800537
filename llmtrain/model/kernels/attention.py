"""Attention as explicit products, for short rows on CPUs.

Reason: PyTorch's flash kernel for CPUs is made for long rows. Forward and backward of 64 rows of 128 tokens
with 4 heads of 64 take 101 ms of one core in bf16; these products take 32 ms. With dropout PyTorch leaves
the flash kernel: 120 ms in bf16 and 113 ms in fp32, here 54 and 75 ms.

The probabilities are kept for the backward pass (2 bytes each in bf16, and 1 for the dropout mask). Scores,
softmax and gradients are made for a few rows at a time, which stay in the cache.

The eager reference is `attention_reference`; the switch is `LLMTRAIN_KERNELS=0`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from llmtrain.model.kernels.dropout import dropout, keep_mask

MAX_SCORES = 1 << 21
"""Scores made at once."""


def attention_reference(
    q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, mask: Tensor | None, rate: float = 0.0
) -> Tensor:
    """The same in plain operations; see `short_attention`."""
    scores_BHTT = q_BHTK @ k_BHTK.transpose(-1, -2) / math.sqrt(q_BHTK.shape[-1])
    if mask is not None:
        scores_BHTT = scores_BHTT.masked_fill(~mask, -math.inf)
    return dropout(scores_BHTT.softmax(dim=-1), rate) @ v_BHTK


def short_attention(
    q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, mask: Tensor | None, rate: float = 0.0
) -> Tensor:
    """Scaled dot-product attention of every query with the keys that its mask shows.

    Args:
        q_BHTK: queries.
        k_BHTK: keys, of as many heads.
        v_BHTK: values.
        mask: (B or 1, 1, T, T) bool, True where a query may look (at least once for each); None is all.
        rate: probability of dropping an attention weight.

    Returns:
        (B, H, T, K)
    """
    if torch.compiler.is_compiling():  # which fuses what stands between the products
        return attention_reference(q_BHTK, k_BHTK, v_BHTK, mask, rate)
    with torch.autocast(q_BHTK.device.type, enabled=False):
        trained = torch.is_grad_enabled()
        result: Tensor = _ShortAttention.apply(q_BHTK, k_BHTK, v_BHTK, mask, rate, trained)
    return result


class _ShortAttention(torch.autograd.Function):
    """Heads of all rows stand in one batch of products, N = B x H."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, rate: float, trained: bool
    ) -> Tensor:
        batch, heads, length, _ = ctx.shape = q.shape
        ctx.root = math.sqrt(q.shape[-1])
        q_NTK, k_NTK, v_NTK = (part.reshape(batch * heads, length, -1) for part in (q / ctx.root, k, v))
        shape = (batch * heads, length, length)
        shares_NTT = q_NTK.new_empty(shape) if trained else None
        keep_NTT, ctx.scale = keep_mask(shape, rate) if rate else (None, 1.0)
        hidden = None if mask is None else _hidden(mask, q.dtype).expand(batch, 1, length, length)
        y_NTK = torch.empty_like(q_NTK)
        for rows, part in _parts(ctx.shape):
            kept = None if shares_NTT is None else shares_NTT[part]
            shares = torch.bmm(q_NTK[part], k_NTK[part].transpose(1, 2), out=kept)
            if hidden is not None:
                shares.unflatten(0, (-1, heads)).add_(hidden[rows])
            torch.softmax(shares, dim=-1, out=shares)
            if keep_NTT is not None:
                shares = shares * keep_NTT[part].to(shares.dtype)
            torch.bmm(shares, v_NTK[part], out=y_NTK[part])
        ctx.save_for_backward(q_NTK, k_NTK, v_NTK, shares_NTT, keep_NTT)
        return (y_NTK.mul_(ctx.scale) if rate else y_NTK).view(ctx.shape)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        q_NTK, k_NTK, v_NTK, shares_NTT, keep_NTT = ctx.saved_tensors
        grad_NTK = grad_outputs[0].reshape(q_NTK.shape)
        if keep_NTT is not None:
            grad_NTK = grad_NTK * ctx.scale
        grads = torch.empty_like(q_NTK), torch.empty_like(k_NTK), torch.empty_like(v_NTK)
        for _, part in _parts(ctx.shape):
            shares, grad = shares_NTT[part], grad_NTK[part]
            kept, grad_kept = shares, torch.bmm(grad, v_NTK[part].transpose(1, 2))
            if keep_NTT is not None:
                keep = keep_NTT[part].to(shares.dtype)
                kept, grad_kept = shares * keep, grad_kept.mul_(keep)
            torch.bmm(kept.transpose(1, 2), grad, out=grads[2][part])
            # d softmax: p * (g - sum(p * g)), in one pass.
            grad_scores = torch.ops.aten._softmax_backward_data(grad_kept, shares, -1, shares.dtype)
            torch.bmm(grad_scores, k_NTK[part], out=grads[0][part])
            torch.bmm(grad_scores.transpose(1, 2), q_NTK[part], out=grads[1][part])
        grads[0].div_(ctx.root)
        return *(grad.view(ctx.shape) for grad in grads), None, None, None


def _parts(shape: torch.Size) -> Iterator[tuple[slice, slice]]:
    """A few rows at a time: where they stand in B, and their heads in N."""
    batch, heads, length, _ = shape
    rows = max(1, MAX_SCORES // (heads * length * length))
    for start in range(0, batch, rows):
        stop = min(start + rows, batch)
        yield slice(start, stop), slice(start * heads, stop * heads)


def _hidden(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to scores: 0 where the mask shows a key, else the lowest number."""
    return mask.view(torch.uint8).to(dtype).sub_(1).mul_(torch.finfo(dtype).max)
