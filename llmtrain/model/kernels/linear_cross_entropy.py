"""Projection onto the vocabulary and cross-entropy in one function that never holds all logits.

Reason: at 50,000 tokens and 8,192 positions the logits alone take 1.6 GB, and autograd would keep them
in two formats. Here a block of rows is projected, its loss and the gradient of its logits are made at
once, and only the gradients of the hidden states, the weight and the bias stay; there is no second product
in the backward pass. Sums are fp32 whatever the format of the products.

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

LossAndCorrect = tuple[Tensor, Tensor | None]
"""Sum of cross-entropies, and how many labels have the highest score of their row (if it was asked for)."""


def linear_cross_entropy_reference(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    labels_N: Tensor,
    vocab: int,
    bias_V: Tensor | None = None,
    count_correct: bool = False,
) -> LossAndCorrect:
    """The same in plain operations, all logits at once."""
    logits_NV = F.linear(hidden_ND, weight_VD[:vocab])
    logits_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    if bias_V is not None:
        logits_NV = logits_NV + bias_V[:vocab]
    loss = F.cross_entropy(logits_NV, labels_N, ignore_index=IGNORE, reduction="sum")
    correct = (logits_NV.argmax(1) == labels_N).sum().to(loss.dtype) if count_correct else None
    return loss, correct


def linear_cross_entropy(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    labels_N: Tensor,
    vocab: int,
    bias_V: Tensor | None = None,
    count_correct: bool = False,
) -> LossAndCorrect:
    """Sum of cross-entropies of ``softmax(hidden @ weight[:vocab].T + bias[:vocab])`` at the labels.

    Args:
        hidden_ND: hidden states; under autocast they and the weight are multiplied in its format.
        weight_VD: projection; rows from `vocab` on are left out.
        labels_N: class of each row, or IGNORE.
        vocab: number of real classes.
        bias_V: added to the logits in fp32; entries from `vocab` on are left out.
        count_correct: count the rows whose label has the highest logit.

    Returns:
        loss: scalar, fp32 (fp64 for fp64 inputs).
        correct: scalar of the same format without a gradient, or None.
    """
    if os.environ.get("LLMTRAIN_KERNELS") == "0":
        return linear_cross_entropy_reference(hidden_ND, weight_VD, labels_N, vocab, bias_V, count_correct)
    if not torch.is_grad_enabled():  # the function below sees only whether the inputs could have gradients
        hidden_ND, weight_VD = hidden_ND.detach(), weight_VD.detach()
        bias_V = None if bias_V is None else bias_V.detach()
    device = hidden_ND.device.type
    autocast = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if autocast else hidden_ND.dtype
    with torch.autocast(device, enabled=False):
        loss, correct = _LinearCrossEntropy.apply(
            hidden_ND, weight_VD, bias_V, labels_N, vocab, dtype, count_correct
        )
    return loss, correct if count_correct else None


class _LinearCrossEntropy(torch.autograd.Function):
    """Makes the gradients in the forward pass; the backward pass only scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        labels_N: Tensor,
        vocab: int,
        dtype: torch.dtype,
        count_correct: bool,
    ) -> tuple[Tensor, Tensor]:
        sum_dtype = torch.promote_types(dtype, torch.float32)
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        weight = weight_VD[:vocab].to(dtype)
        total, correct = hidden_ND.new_zeros((2,), dtype=sum_dtype)
        grad_hidden = torch.empty_like(hidden_ND) if need_hidden else None
        grad_weight = torch.zeros_like(weight_VD, dtype=sum_dtype) if need_weight else None
        grad_bias = torch.zeros_like(bias_V, dtype=sum_dtype) if need_bias and bias_V is not None else None
        rows = max(1, MAX_LOGITS // vocab)
        for start in range(0, len(hidden_ND), rows):
            part = slice(start, start + rows)
            hidden, labels = hidden_ND[part].to(dtype), labels_N[part, None]
            labelled = labels != IGNORE
            target = labels.where(labelled, 0)
            logits = F.linear(hidden, weight).to(sum_dtype)
            if bias_V is not None:
                logits += bias_V[:vocab]
            if count_correct:
                highest, best = logits.max(dim=1, keepdim=True)
                correct += (best == labels).sum()
            else:
                highest = logits.amax(dim=1, keepdim=True)
            scores = logits.gather(1, target)
            # From here on in place: a fresh block of logits costs more in page faults than an operation.
            shares = logits.sub_(highest).exp_()
            sums = shares.sum(dim=1, keepdim=True)
            total += (sums.log() + highest - scores).where(labelled, 0).sum()
            if not (need_hidden or need_weight or need_bias):
                continue
            # d loss / d logits = softmax - one-hot, and nothing where there is no label.
            grad_logits = shares.mul_(labelled / sums)
            grad_logits.scatter_add_(1, target, -labelled.to(sum_dtype))
            if grad_bias is not None:
                grad_bias[:vocab] += grad_logits.sum(dim=0)
            grad_logits = grad_logits.to(dtype)
            if grad_hidden is not None:
                grad_hidden[part] = grad_logits @ weight
            if grad_weight is not None:
                grad_weight[:vocab] += grad_logits.T @ hidden
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.dtypes = (weight_VD.dtype, None if bias_V is None else bias_V.dtype)
        ctx.mark_non_differentiable(correct)
        return total, correct

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        grad = grad_outputs[0]
        grad_hidden, grad_weight, grad_bias = ctx.saved_tensors
        weight_dtype, bias_dtype = ctx.dtypes
        if grad_hidden is not None:
            grad_hidden = grad_hidden * grad.to(grad_hidden.dtype)
        if grad_weight is not None:
            grad_weight = (grad_weight * grad).to(weight_dtype)
        if grad_bias is not None:
            grad_bias = (grad_bias * grad).to(bias_dtype)
        return grad_hidden, grad_weight, grad_bias, None, None, None, None
