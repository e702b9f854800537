"""Projection onto the vocabulary and cross-entropy in one function that never holds all logits.

Reason: at 50,000 tokens and 8,192 positions the logits alone take 1.6 GB, and autograd would keep them
in two formats. Here a block of rows is projected, its loss and the gradient of its logits are made at
once, and only the gradients of the hidden states and of the weight stay; there is no second product in
the backward pass. Sums are fp32 whatever the format of the products.

The eager reference is `linear_cross_entropy_reference`; the switch is `LLMTRAIN_KERNELS=0`.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llmtrain.data.batch import IGNORE

MAX_LOGITS = 1 << 26
"""Logits held at once (256 MB in fp32); fewer, larger products are faster, see scripts/bench."""


def linear_cross_entropy_reference(
    hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, vocab: int
) -> Tensor:
    """The same in plain operations, all logits at once."""
    logits_NV = F.linear(hidden_ND, weight_VD[:vocab])
    sum_dtype = torch.promote_types(logits_NV.dtype, torch.float32)
    return F.cross_entropy(logits_NV.to(sum_dtype), labels_N, ignore_index=IGNORE, reduction="sum")


def linear_cross_entropy(hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, vocab: int) -> Tensor:
    """Sum of cross-entropies of ``softmax(hidden @ weight[:vocab].T)`` at the labels.

    Args:
        hidden_ND: hidden states; under autocast they and the weight are multiplied in its format.
        weight_VD: projection; rows from `vocab` on are left out.
        labels_N: class of each row, or IGNORE.
        vocab: number of real classes.

    Returns:
        scalar, fp32 (fp64 for fp64 inputs).
    """
    if os.environ.get("LLMTRAIN_KERNELS") == "0":
        return linear_cross_entropy_reference(hidden_ND, weight_VD, labels_N, vocab)
    if not torch.is_grad_enabled():  # the function below sees only whether the inputs could have gradients
        hidden_ND, weight_VD = hidden_ND.detach(), weight_VD.detach()
    device = hidden_ND.device.type
    autocast = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if autocast else hidden_ND.dtype
    with torch.autocast(device, enabled=False):
        return _LinearCrossEntropy.apply(hidden_ND, weight_VD, labels_N, vocab, dtype)


class _LinearCrossEntropy(torch.autograd.Function):
    """Makes the gradients in the forward pass; the backward pass only scales them."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, vocab: int, dtype: torch.dtype
    ) -> Tensor:
        sum_dtype = torch.promote_types(dtype, torch.float32)
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        weight = weight_VD[:vocab].to(dtype)
        total = hidden_ND.new_zeros((), dtype=sum_dtype)
        grad_hidden = torch.empty_like(hidden_ND) if need_hidden else None
        grad_weight = torch.zeros_like(weight_VD, dtype=sum_dtype) if need_weight else None
        rows = max(1, MAX_LOGITS // vocab)
        for start in range(0, len(hidden_ND), rows):
            part = slice(start, start + rows)
            hidden, labels = hidden_ND[part].to(dtype), labels_N[part, None]
            labelled = labels != IGNORE
            target = labels.where(labelled, 0)
            logits = F.linear(hidden, weight).to(sum_dtype)
            log_total = logits.logsumexp(dim=1, keepdim=True)
            losses = (log_total - logits.gather(1, target)).where(labelled, 0)
            total += losses.sum()
            if grad_hidden is None and grad_weight is None:
                continue
            # d loss / d logits = softmax - one-hot, and nothing where there is no label.
            grad_logits = logits.sub_(log_total).exp_()
            grad_logits.scatter_add_(1, target, grad_logits.new_full(target.shape, -1.0))
            grad_logits = grad_logits.mul_(labelled).to(dtype)
            if grad_hidden is not None:
                grad_hidden[part] = grad_logits @ weight
            if grad_weight is not None:
                grad_weight[:vocab] += grad_logits.T @ hidden
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight_VD.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        grad_hidden, grad_weight = ctx.saved_tensors
        if grad_hidden is not None:
            grad_hidden = grad_hidden * grad.to(grad_hidden.dtype)
        if grad_weight is not None:
            grad_weight = (grad_weight * grad).to(ctx.weight_dtype)
        return grad_hidden, grad_weight, None, None, None
