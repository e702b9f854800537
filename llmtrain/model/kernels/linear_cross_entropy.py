"""Projection onto the vocabulary and cross-entropy in one function that never holds all logits.

Reason: at 50,000 tokens and 8,192 positions the logits alone take 1.6 GB, and autograd would keep them
in two formats. Here a block of rows is projected, its loss and the gradient of its logits are made at
once, and only the gradients of the hidden states, the weight and the bias stay; there is no second product
in the backward pass. Sums are fp32 whatever the format of the products.

The eager reference is `linear_cross_entropy_reference`; the switch is `LLMTRAIN_KERNELS=0`.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from llmtrain.data.batch import IGNORE

MAX_LOGITS = 1 << 26
"""Logits held at once (256 MB in fp32); fewer, larger products are faster, see scripts/bench."""

LossAndCorrect = tuple[Tensor, Tensor | None]
"""Sum of cross-entropies, and how many labels have the highest score of their row (if it was asked for)."""


@dataclass(frozen=True)
class LossTerms:
    """What is added to the cross-entropies in training.

    Attributes:
        label_smoothing: share of the target that is spread over all classes (Szegedy et al. 2016, section 7).
        z_loss: factor of the squared logarithm of the softmax's denominator, which keeps logits from
            drifting (Chowdhery et al. 2022, "PaLM", section 5).
    """

    label_smoothing: float = 0.0
    z_loss: float = 0.0


PLAIN = LossTerms()
"""Cross-entropy alone."""


@dataclass(frozen=True)
class VocabularyShard:
    """The classes of this process where several share the vocabulary; each has all rows of hidden states.

    Attributes:
        group: the processes.
        start: class that the first row of the own weight stands for.
        num_classes: real classes of all processes.
    """

    group: dist.ProcessGroup
    start: int
    num_classes: int

    def reduce(self, values: Tensor, how: Any) -> Tensor:
        """Reduce over the processes, in place."""
        dist.all_reduce(values, how, group=self.group)
        return values


def linear_cross_entropy_reference(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    labels_N: Tensor,
    vocab: int,
    bias_V: Tensor | None = None,
    count_correct: bool = False,
    terms: LossTerms = PLAIN,
) -> LossAndCorrect:
    """The same in plain operations, all logits at once."""
    logits_NV = F.linear(hidden_ND, weight_VD[:vocab])
    logits_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    if bias_V is not None:
        logits_NV = logits_NV + bias_V[:vocab]
    loss = F.cross_entropy(
        logits_NV, labels_N, ignore_index=IGNORE, reduction="sum", label_smoothing=terms.label_smoothing
    )
    if terms.z_loss:
        loss = loss + terms.z_loss * logits_NV.logsumexp(dim=1).square().where(labels_N != IGNORE, 0).sum()
    correct = (logits_NV.argmax(1) == labels_N).sum().to(loss.dtype) if count_correct else None
    return loss, correct


def linear_cross_entropy(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    labels_N: Tensor,
    vocab: int,
    bias_V: Tensor | None = None,
    count_correct: bool = False,
    shard: VocabularyShard | None = None,
    terms: LossTerms = PLAIN,
) -> LossAndCorrect:
    """Sum of cross-entropies of ``softmax(hidden @ weight[:vocab].T + bias[:vocab])`` at the labels.

    Args:
        hidden_ND: hidden states; under autocast they and the weight are multiplied in its format.
        weight_VD: projection; rows from `vocab` on are left out.
        labels_N: class of each row, or IGNORE.
        vocab: number of real classes.
        bias_V: added to the logits in fp32; entries from `vocab` on are left out.
        count_correct: count the rows whose label has the highest logit.
        shard: weight, bias and `vocab` are a share of the classes, and `vocab` may be 0; labels are those of
            all. Collective; loss and gradient of the hidden states are whole in every process.
        terms: what is added to the loss.

    Returns:
        loss: scalar, fp32 (fp64 for fp64 inputs).
        correct: scalar of the same format without a gradient, or None.
    """
    if os.environ.get("LLMTRAIN_KERNELS") == "0" and shard is None:
        return linear_cross_entropy_reference(
            hidden_ND, weight_VD, labels_N, vocab, bias_V, count_correct, terms
        )
    if not torch.is_grad_enabled():  # the function below sees only whether the inputs could have gradients
        hidden_ND, weight_VD = hidden_ND.detach(), weight_VD.detach()
        bias_V = None if bias_V is None else bias_V.detach()
    device = hidden_ND.device.type
    autocast = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if autocast else hidden_ND.dtype
    with torch.autocast(device, enabled=False):
        loss, correct = _LinearCrossEntropy.apply(
            hidden_ND, weight_VD, bias_V, labels_N, vocab, dtype, count_correct, shard, terms
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
        shard: VocabularyShard | None,
        terms: LossTerms,
    ) -> tuple[Tensor, Tensor]:
        sum_dtype = torch.promote_types(dtype, torch.float32)
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        num = max(1, vocab)  # of a share without a real class, one row takes part with a probability of 0
        weight = weight_VD[:num].to(dtype)
        start, num_classes = (0, vocab) if shard is None else (shard.start, shard.num_classes)
        spread = terms.label_smoothing / num_classes  # what each class has of a smoothed target
        total, correct = (hidden_ND.new_zeros((), dtype=sum_dtype) for _ in range(2))
        grad_hidden = torch.empty_like(hidden_ND) if need_hidden else None
        grad_weight = torch.zeros_like(weight_VD, dtype=sum_dtype) if need_weight else None
        grad_bias = torch.zeros_like(bias_V, dtype=sum_dtype) if need_bias and bias_V is not None else None
        # By the rows of the weight, padding included: those who share the vocabulary have equally many, and
        # exchange what they find block by block.
        rows = max(1, MAX_LOGITS // len(weight_VD))
        for first in range(0, len(hidden_ND), rows):
            part = slice(first, first + rows)
            hidden, labels = hidden_ND[part].to(dtype), labels_N[part, None]
            labelled = labels != IGNORE
            own = labelled if shard is None else (labels >= start) & (labels < start + vocab)
            target = (labels - start).where(own, 0)
            logits = F.linear(hidden, weight).to(sum_dtype)
            if bias_V is not None:
                logits += bias_V[:num]
            if vocab == 0:
                logits.fill_(-math.inf)
            highest, best = highest_logits(logits, start, count_correct, shard)
            if best is not None:
                correct += (best == labels).sum()
            scores = logits.gather(1, target).where(own, 0) * (1.0 - terms.label_smoothing)
            if spread and vocab:
                scores += spread * logits.sum(dim=1, keepdim=True)
            # From here on in place: a fresh block of logits costs more in page faults than an operation.
            shares = logits.sub_(highest).exp_()
            sums = shares.sum(dim=1, keepdim=True)
            if shard is not None:
                sums, scores = shard.reduce(torch.cat([sums, scores], dim=1), dist.ReduceOp.SUM).split(
                    1, dim=1
                )
            logsumexp = sums.log() + highest
            total += (logsumexp - scores + terms.z_loss * logsumexp.square()).where(labelled, 0).sum()
            if not (need_hidden or need_weight or need_bias):
                continue
            # d loss / d logits = softmax * (1 + 2 z logsumexp) - target, and nothing where there is no label.
            grad_logits = shares.mul_(labelled * (1.0 + 2.0 * terms.z_loss * logsumexp) / sums)
            grad_logits.scatter_add_(1, target, own.to(sum_dtype) * (terms.label_smoothing - 1.0))
            if spread and vocab:
                grad_logits -= spread * labelled.to(sum_dtype)
            if grad_bias is not None:
                grad_bias[:num] += grad_logits.sum(dim=0)
            grad_logits = grad_logits.to(dtype)
            if grad_hidden is not None:
                grad_hidden[part] = grad_logits @ weight
            if grad_weight is not None:
                grad_weight[:num] += grad_logits.T @ hidden
        if shard is not None and grad_hidden is not None:
            shard.reduce(grad_hidden, dist.ReduceOp.SUM)
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
        return grad_hidden, grad_weight, grad_bias, *[None] * 6


def highest_logits(
    logits_NV: Tensor, start: int, locate: bool, shard: VocabularyShard | None
) -> tuple[Tensor, Tensor | None]:
    """The highest logit of each row among all classes, (N, 1), and (to `locate`) its class, (N, 1)."""
    if not locate:
        highest_N1 = logits_NV.amax(dim=1, keepdim=True)
        return (highest_N1 if shard is None else shard.reduce(highest_N1, dist.ReduceOp.MAX)), None
    highest_N1, best_N1 = logits_NV.max(dim=1, keepdim=True)
    if shard is None:
        return highest_N1, best_N1
    own_N1 = highest_N1.clone()
    shard.reduce(highest_N1, dist.ReduceOp.MAX)
    nobody = torch.iinfo(best_N1.dtype).max
    best_N1 = (best_N1 + start).where(own_N1 == highest_N1, nobody)
    return highest_N1, shard.reduce(best_N1, dist.ReduceOp.MIN)
