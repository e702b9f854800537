"""Attention as explicit products, for short rows on CPUs.

Reason: PyTorch's flash kernel for CPUs is made for long rows. Forward and backward of 64 rows of 128 tokens
with 4 heads of 64 take 101 ms of one core in bf16; these products take 32 ms. With dropout PyTorch leaves
the flash kernel: 120 ms in bf16 and 113 ms in fp32, here 54 and 75 ms. For compilers these are two operators
that stay as they are: inductor's own softmax between products takes 1.4 times as long.

The probabilities are kept for the backward pass (2 bytes each in bf16, and 1 for the dropout mask). Scores,
softmax and gradients are made for a few rows at a time, which stay in the cache. With causal attention a
block of queries is multiplied only with the keys that it may see.

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

BLOCK = 256
"""Queries of a block, with causal attention."""


def attention_reference(
    q_BHTK: Tensor,
    k_BHTK: Tensor,
    v_BHTK: Tensor,
    mask: Tensor | None,
    rate: float = 0.0,
    causal: bool = False,
) -> Tensor:
    """The same in plain operations; see `short_attention`."""
    scores_BHTT = q_BHTK @ k_BHTK.transpose(-1, -2) / math.sqrt(q_BHTK.shape[-1])
    if mask is None and causal:
        mask = scores_BHTT.new_ones(scores_BHTT.shape[-2:], dtype=torch.bool).tril()
    if mask is not None:
        scores_BHTT = scores_BHTT.masked_fill(~mask, -math.inf)
    return dropout(scores_BHTT.softmax(dim=-1), rate) @ v_BHTK


def short_attention(
    q_BHTK: Tensor,
    k_BHTK: Tensor,
    v_BHTK: Tensor,
    mask: Tensor | None,
    rate: float = 0.0,
    causal: bool = False,
) -> Tensor:
    """Scaled dot-product attention of every query with the keys that its mask shows.

    Args:
        q_BHTK: queries.
        k_BHTK: keys, of as many heads.
        v_BHTK: values.
        mask: (B or 1, 1, T, T) bool, True where a query may look (at least once for each). None is all, or
            with `causal` all up to the query's own place.
        rate: probability of dropping an attention weight.
        causal: no query looks behind its own place; a mask says so too.

    Returns:
        (B, H, T, K)
    """
    batch, heads, length, _ = q_BHTK.shape
    keep, scale = keep_mask((batch * heads, length, length), rate, q_BHTK) if rate else (None, 1.0)
    inputs = (part.contiguous() for part in (q_BHTK, k_BHTK, v_BHTK))
    y_BHTK, _ = attend(*inputs, mask, keep, scale, causal, torch.is_grad_enabled())
    return y_BHTK


@torch.library.custom_op("llmtrain::attend", mutates_args=())
def attend(
    q_BHTK: Tensor,
    k_BHTK: Tensor,
    v_BHTK: Tensor,
    mask: Tensor | None,
    keep: Tensor | None,
    scale: float,
    causal: bool,
    trained: bool,
) -> tuple[Tensor, Tensor]:
    """The forward pass; all inputs are contiguous.

    Args:
        keep: (B x H, T, T) uint8, 0 where a weight is dropped.
        scale: of the weights that stay.
        trained: whether a backward pass may follow.

    Returns:
        (B, H, T, K), and the probabilities for the backward pass (one after another, see `_blocks`).
    """
    shape = q_BHTK.shape
    q_NTK, k_NTK, v_NTK = (part.flatten(0, 1) for part in (q_BHTK, k_BHTK, v_BHTK))
    hidden = _hidden(mask, causal, q_NTK)
    y_NTK = torch.empty_like(q_NTK)
    shares = q_NTK.new_empty(_num_shares(shape, causal) if trained else 0)
    scratch = q_NTK.new_empty(_num_scratch(shape))
    for rows, part in _parts(shape):
        for queries, end, space in _blocks(shape, causal):
            scores = _take(scratch, part, queries, end)
            left, right = q_NTK[part, queries], k_NTK[part, :end].transpose(1, 2)
            _scores(left, right, None if hidden is None else hidden[:, queries, :end], rows, scores)
            kept = _kept(shares, space, shape, queries, end)[part] if trained else scores
            torch.softmax(scores, dim=-1, out=kept)
            if keep is not None:
                kept = torch.mul(kept, keep[part, queries, :end], out=scores)
            _product(kept, v_NTK[part, :end], y_NTK[part, queries], scale)
    return y_NTK.view(shape), shares


@torch.library.custom_op("llmtrain::attend_backward", mutates_args=())
def attend_backward(
    grad_BHTK: Tensor,
    q_BHTK: Tensor,
    k_BHTK: Tensor,
    v_BHTK: Tensor,
    shares: Tensor,
    keep: Tensor | None,
    scale: float,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values; see `attend`."""
    shape, root = q_BHTK.shape, math.sqrt(q_BHTK.shape[-1])
    q_NTK, k_NTK, v_NTK, grad_NTK = (part.flatten(0, 1) for part in (q_BHTK, k_BHTK, v_BHTK, grad_BHTK))
    grad_q, grad_k, grad_v = (torch.empty_like(q_NTK) for _ in range(3))
    scratch = q_NTK.new_empty(2, _num_scratch(shape))
    for _, part in _parts(shape):
        # The last block comes first: it sees every key, so that those before it can add to what it leaves.
        for queries, end, space in reversed(list(_blocks(shape, causal))):
            grad, add = grad_NTK[part, queries], end < shape[2]
            probabilities = _kept(shares, space, shape, queries, end)[part]
            grad_kept, grad_scores = (_take(one, part, queries, end) for one in scratch)
            kept = probabilities
            if keep is not None:
                kept = torch.mul(probabilities, keep[part, queries, :end], out=grad_scores)
            _product(kept.transpose(1, 2), grad, grad_v[part, :end], scale, add)
            _product(grad, v_NTK[part, :end].transpose(1, 2), grad_kept, scale)
            if keep is not None:
                grad_kept.mul_(keep[part, queries, :end])
            # d softmax: p * (g - sum(p * g)), in one pass.
            torch.ops.aten._softmax_backward_data.out(
                grad_kept, probabilities, -1, q_NTK.dtype, grad_input=grad_scores
            )
            _product(grad_scores, k_NTK[part, :end], grad_q[part, queries], 1 / root)
            _product(grad_scores.transpose(1, 2), q_NTK[part, queries], grad_k[part, :end], 1 / root, add)
    return grad_q.view(shape), grad_k.view(shape), grad_v.view(shape)


@attend.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    keep: Tensor | None,
    scale: float,
    causal: bool,
    trained: bool,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q), q.new_empty(_num_shares(q.shape, causal) if trained else 0)


@attend_backward.register_fake
def _(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    shares: Tensor,
    keep: Tensor | None,
    scale: float,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, _, keep, ctx.scale, ctx.causal, _ = inputs
    ctx.save_for_backward(q, k, v, output[1], keep)


def _backward(ctx: Any, grad_BHTK: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    grads = attend_backward(grad_BHTK.contiguous(), *ctx.saved_tensors, ctx.scale, ctx.causal)
    return *grads, None, None, None, None, None


attend.register_autograd(_backward, setup_context=_save)


def _product(left: Tensor, right: Tensor, out: Tensor, factor: float = 1.0, add: bool = False) -> None:
    """A batch of products, times a factor; set, or added to what is there."""
    torch.baddbmm(out, left, right, beta=float(add), alpha=factor, out=out)


def _scores(q: Tensor, k_transposed: Tensor, hidden: Tensor | None, rows: slice, out: Tensor) -> None:
    """Products of queries and keys over the root of their width, with what hides some of them added."""
    factor = 1 / math.sqrt(q.shape[-1])
    if hidden is None:
        _product(q, k_transposed, out, factor)
    elif len(hidden) == 1:
        torch.baddbmm(hidden, q, k_transposed, alpha=factor, out=out)
    else:
        _product(q, k_transposed, out, factor)
        shown = hidden[rows]
        out.unflatten(0, (len(shown), -1)).add_(shown[:, None])


def _hidden(mask: Tensor | None, causal: bool, like: Tensor) -> Tensor | None:
    """What is added to scores, (B or 1, T, T): 0 where a key is shown, else the lowest number."""
    length, dtype = like.shape[1], like.dtype
    if mask is not None:
        return mask[:, 0].view(torch.uint8).to(dtype).sub_(1).mul_(torch.finfo(dtype).max)
    if not causal:
        return None
    return like.new_full((1, length, length), torch.finfo(dtype).min).triu_(1)


def _parts(shape: torch.Size) -> Iterator[tuple[slice, slice]]:
    """A few rows at a time: where they stand in B, and their heads in N = B x H."""
    batch, heads, _, _ = shape
    rows = _rows_at_once(shape)
    for start in range(0, batch, rows):
        stop = min(start + rows, batch)
        yield slice(start, stop), slice(start * heads, stop * heads)


def _rows_at_once(shape: torch.Size) -> int:
    _, heads, length, _ = shape
    return max(1, MAX_SCORES // (heads * length * min(length, BLOCK)))


def _num_scratch(shape: torch.Size) -> int:
    """Scores of the largest block."""
    return min(_rows_at_once(shape), shape[0]) * shape[1] * shape[2] * shape[2]


def _blocks(shape: torch.Size, causal: bool) -> Iterator[tuple[slice, int, int]]:
    """The queries of each block, the first key that none of them sees, and how many probabilities of a head
    belong to blocks before it."""
    length = shape[2]
    step, space = BLOCK if causal else length, 0
    for start in range(0, length, step):
        stop = min(start + step, length)
        end = stop if causal else length
        yield slice(start, stop), end, space
        space += (stop - start) * end


def _num_shares(shape: torch.Size, causal: bool) -> int:
    """Probabilities kept of all heads; a formula, since counting ties a compiled graph to a length."""
    length = shape[2]
    per_head = length * length
    if causal:
        whole, rest = length // BLOCK, length % BLOCK
        per_head = BLOCK * BLOCK * whole * (whole + 1) // 2 + rest * length
    return shape[0] * shape[1] * per_head


def _kept(shares: Tensor, space: int, shape: torch.Size, queries: slice, end: int) -> Tensor:
    """The kept probabilities of a block: (N, queries, keys)."""
    num, width = shape[0] * shape[1], queries.stop - queries.start
    return shares[num * space : num * (space + width * end)].view(num, width, end)


def _take(scratch: Tensor, part: slice, queries: slice, end: int) -> Tensor:
    """Room for the scores of a part of a block."""
    size = part.stop - part.start, queries.stop - queries.start, end
    return scratch[: math.prod(size)].view(size)
