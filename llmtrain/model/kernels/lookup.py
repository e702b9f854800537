"""Rows of an embedding, with a gradient that holds only the rows that occur.

Reason: PyTorch's gradient of an embedding is as large as the embedding. A batch of 32 sentences looks up some
400 rows of BERT-small's 30,522; to make the whole gradient, 62 MB of zeros nearly all of it, takes 8 ms of a
core, this 0.3 ms. What a row's gradient is made of, and in which order, is the same, so all bits are.

The eager reference is `torch.nn.functional.embedding`; the switch is `LLMTRAIN_KERNELS=0`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def sparse_lookup(ids: Tensor, weight_VD: Tensor) -> Tensor:
    """Rows `ids` (any shape) of a matrix, (..., D); the gradient of the matrix is a sparse tensor.

    Its indices are the rows that occur, once each and in order. Autograd adds it in place to a dense gradient
    that is there already; where none is, the sparse tensor becomes the gradient.
    """
    result: Tensor = _SparseLookup.apply(weight_VD, ids)
    return result


class _SparseLookup(torch.autograd.Function):
    """The gradient is PyTorch's own, of the matrix of those rows that occur."""

    @staticmethod
    def forward(ctx: Any, weight_VD: Tensor, ids: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.shape = weight_VD.shape
        return F.embedding(ids, weight_VD)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (ids,) = ctx.saved_tensors
        rows_R, places = ids.unique(return_inverse=True)
        values_RD = torch.ops.aten.embedding_dense_backward(grad_outputs[0], places, len(rows_R), -1, False)
        gradient = torch.sparse_coo_tensor(
            rows_R[None], values_RD, ctx.shape, is_coalesced=True, check_invariants=False
        )
        return gradient, None
