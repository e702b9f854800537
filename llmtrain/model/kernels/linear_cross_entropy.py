"""Projection onto the vocabulary and cross-entropy in one function that never holds all logits.

Reason: at 50,000 tokens and 8,192 positions the logits alone take 1.6 GB, and autograd would keep them
in two formats. Here a block of rows is projected, its loss and the gradient of its logits are made at
once, and only the gradients of the hidden states, the weight and the bias stay; there is no second product
in the backward pass. Sums are fp32 whatever the format of the products. On a CPU what is between the products
is done for a few rows at a time, which stay in the cache: 1,200 rows of 30,522 classes in bf16 take 270 ms of
one core besides the products when they are worked on as a whole, and 60 ms so.

The eager reference is `linear_cross_entropy_reference`; the switch is `LLMTRAIN_KERNELS=0`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from llmtrain.data.batch import IGNORE

MAX_LOGITS = 1 << 26
"""Logits held at once (128 MB in bf16); fewer, larger products are faster, see scripts/bench."""

CACHED_LOGITS = 1 << 19
"""Logits that are worked on at once on a CPU (2 MB in fp32)."""

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
        weight, bias = weight_VD[:num].to(dtype), None if bias_V is None else bias_V[:num]
        total, correct = (hidden_ND.new_zeros((), dtype=sum_dtype) for _ in range(2))
        grad_hidden = torch.empty_like(hidden_ND) if need_hidden else None
        grad_weight = torch.zeros_like(weight_VD, dtype=sum_dtype) if need_weight else None
        grad_bias = torch.zeros_like(bias_V, dtype=sum_dtype) if need_bias and bias_V is not None else None
        classes = _Classes(vocab, sum_dtype, bias, shard, terms, count_correct, any(ctx.needs_input_grad[:3]))
        # By the rows of the weight, padding included: those who share the vocabulary have equally many, and
        # exchange what they find block by block.
        rows = max(1, MAX_LOGITS // len(weight_VD))
        for first in range(0, len(hidden_ND), rows):
            block = slice(first, first + rows)
            hidden, labels = hidden_ND[block].to(dtype), labels_N[block, None]
            logits = F.linear(hidden, weight)
            for part in classes.parts(logits):
                loss, hits, grad = classes.loss_and_gradient(logits[part], labels[part])
                total += loss
                correct += hits
                if grad_bias is not None:
                    grad_bias[:num] += grad.sum(dim=0)
            if grad_hidden is not None:
                grad_hidden[block] = logits @ weight
            if grad_weight is not None:
                grad_weight[:num] += logits.T @ hidden
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


@dataclass
class _Classes:
    """Makes losses of logits, and the gradients of the logits in their place.

    Attributes:
        vocab: real classes here.
        sum_dtype: format that it is worked out in.
        bias: added to the logits, or None.
        shard: where several processes share the classes.
        terms: of the loss.
        count_correct: whether to find the labels that have the highest logit.
        need_gradient: whether to leave gradients.
    """

    vocab: int
    sum_dtype: torch.dtype
    bias: Tensor | None
    shard: VocabularyShard | None
    terms: LossTerms
    count_correct: bool
    need_gradient: bool
    scratch: Tensor | None = None

    def parts(self, logits_NV: Tensor) -> Iterator[slice]:
        """A few rows at a time on a CPU, so that its cache holds them; else all of them at once."""
        length, num = logits_NV.shape
        few = max(1, CACHED_LOGITS // num)
        step = few if self.shard is None and logits_NV.device.type == "cpu" else max(1, length)
        for start in range(0, length, step):
            yield slice(start, start + step)

    def loss_and_gradient(self, logits_NV: Tensor, labels_N1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Writes the gradients over the logits.

        Returns:
            sum of the losses, number of labels with the highest logit (0 if it was not asked for), and the
            gradients in the format of sums.
        """
        smoothing, z_loss = self.terms.label_smoothing, self.terms.z_loss
        start, num_classes = (
            (0, self.vocab) if self.shard is None else (self.shard.start, self.shard.num_classes)
        )
        spread = smoothing / num_classes  # what each class has of a smoothed target
        labelled = labels_N1 != IGNORE
        own = labelled if self.shard is None else (labels_N1 >= start) & (labels_N1 < start + self.vocab)
        target = (labels_N1 - start).where(own, 0)
        numbers = self._numbers(logits_NV)
        if self.bias is not None:
            numbers += self.bias
        if self.vocab == 0:
            numbers.fill_(-math.inf)
        highest = _over_shards(numbers.amax(dim=1, keepdim=True), self.shard, dist.ReduceOp.MAX)
        at_label = numbers.gather(1, target)
        hits = labelled.new_zeros(())
        if self.count_correct:
            hits = count_highest(numbers, highest, at_label, labels_N1, self.shard)
        scores = at_label.where(own, 0) * (1.0 - smoothing)
        if spread and self.vocab:
            scores += spread * numbers.sum(dim=1, keepdim=True)
        # From here on in place: fresh numbers cost more in page faults than an operation.
        shares = numbers.sub_(highest).exp_()
        sums = shares.sum(dim=1, keepdim=True)
        sums, scores = _over_shards(torch.cat([sums, scores], dim=1), self.shard, dist.ReduceOp.SUM).split(
            1, 1
        )
        logsumexp = sums.log() + highest
        loss = (logsumexp - scores + z_loss * logsumexp.square()).where(labelled, 0).sum()
        if not self.need_gradient:
            return loss, hits, numbers
        # d loss / d logits = softmax * (1 + 2 z logsumexp) - target, and nothing where there is no label.
        gradient = shares.mul_(labelled * (1.0 + 2.0 * z_loss * logsumexp) / sums)
        gradient.scatter_add_(1, target, own.to(gradient.dtype) * (smoothing - 1.0))
        if spread and self.vocab:
            gradient -= spread * labelled.to(gradient.dtype)
        if gradient is not logits_NV:
            logits_NV.copy_(gradient)
        return loss, hits, gradient

    def _numbers(self, logits_NV: Tensor) -> Tensor:
        """The logits in the format of sums: themselves, or a copy in memory that is used again and again."""
        if logits_NV.dtype == self.sum_dtype:
            return logits_NV
        if self.scratch is None or len(self.scratch) < len(logits_NV):
            self.scratch = torch.empty_like(logits_NV, dtype=self.sum_dtype)
        return self.scratch[: len(logits_NV)].copy_(logits_NV)


def _over_shards(values: Tensor, shard: VocabularyShard | None, how: Any) -> Tensor:
    return values if shard is None else shard.reduce(values, how)


def count_highest(
    logits_NV: Tensor,
    highest_N1: Tensor,
    at_label_N1: Tensor,
    labels_N1: Tensor,
    shard: VocabularyShard | None,
) -> Tensor:
    """How many labels have the highest logit of their row; of equal ones the first class counts."""
    if shard is not None:
        own_N1, best_N1 = logits_NV.max(dim=1, keepdim=True)
        nobody = torch.iinfo(best_N1.dtype).max
        best_N1 = shard.reduce((best_N1 + shard.start).where(own_N1 == highest_N1, nobody), dist.ReduceOp.MIN)
        return (best_N1 == labels_N1).sum()
    if logits_NV.device.type == "cpu":  # where looking for places takes far longer than for the highest
        rows = (at_label_N1 == highest_N1)[:, 0].nonzero()[:, 0]
        logits_NV, labels_N1 = logits_NV[rows], labels_N1[rows]
    return (logits_NV.argmax(dim=1, keepdim=True) == labels_N1).sum()
