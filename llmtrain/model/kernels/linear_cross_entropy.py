"""Projection onto the vocabulary and cross-entropy in one function that never holds all logits.

Reason: at 50,000 tokens and 8,192 positions the logits alone take 1.6 GB, and autograd would keep them
in two formats. Here a block of rows is projected, its losses and the gradients of its logits are made at
once, and only the gradients of the hidden states, the weight and the bias stay; there is no second product
in the backward pass. Sums are fp32 whatever the format of the products.

What is done number by number between the products stands in `loops.py`.

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
from llmtrain.model.kernels.loops import EAGER, Loops, numbers_of
from llmtrain.model.kernels.weight_gradient import turns_hidden

MAX_LOGITS = 1 << 27
"""Logits held at once (256 MB in bf16); fewer, larger products are faster, see scripts/bench."""

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
    loops: Loops = EAGER,
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
        loops: what is done number by number, eager or compiled.

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
        classes = _Classes(vocab, shard, terms)
        loss, correct = _LinearCrossEntropy.apply(
            hidden_ND, weight_VD, bias_V, labels_N, dtype, count_correct, classes, loops
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
        dtype: torch.dtype,
        count_correct: bool,
        classes: _Classes,
        loops: Loops,
    ) -> tuple[Tensor, Tensor]:
        sum_dtype = torch.promote_types(dtype, torch.float32)
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        # Padding is multiplied as well: products of round sizes are faster.
        weight = weight_VD.to(dtype)
        total, correct = (hidden_ND.new_zeros((), dtype=sum_dtype) for _ in range(2))
        grad_hidden = torch.empty_like(hidden_ND) if need_hidden else None
        grad_weight = torch.empty_like(weight_VD, dtype=sum_dtype) if need_weight else None
        grad_bias = torch.zeros_like(bias_V, dtype=sum_dtype) if need_bias and bias_V is not None else None
        if grad_weight is not None and len(hidden_ND) == 0:
            grad_weight.zero_()
        # By the rows of the weight, padding included: those who share the vocabulary have equally many, and
        # exchange what they find block by block.
        num_blocks = max(1, math.ceil(len(hidden_ND) * len(weight_VD) / MAX_LOGITS))
        rows = max(1, math.ceil(len(hidden_ND) / num_blocks))
        for first in range(0, len(hidden_ND), rows):
            block = slice(first, first + rows)
            hidden = hidden_ND[block].to(dtype)
            logits = F.linear(hidden, weight)
            scores = _Scores(classes, loops, logits, labels_N[block, None], bias_V, sum_dtype)
            total += scores.losses().sum()
            if count_correct:
                correct += scores.count_correct()
            if not any(ctx.needs_input_grad[:3]):
                continue
            scores.to_gradients()
            if grad_bias is not None:
                grad_bias += loops.sum_rows(logits, sum_dtype)
            if grad_hidden is not None:
                grad_hidden[block] = logits @ weight
            if grad_weight is not None:
                turned = loops.compiled and turns_hidden(hidden)
                product = (hidden.T.contiguous() @ logits).T if turned else logits.T @ hidden
                loops.put(grad_weight, product, first > 0)
        if classes.shard is not None and grad_hidden is not None:
            classes.shard.reduce(grad_hidden, dist.ReduceOp.SUM)
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.dtypes = (hidden_ND.dtype, weight_VD.dtype, None if bias_V is None else bias_V.dtype)
        ctx.mark_non_differentiable(correct)
        return total, correct

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        scaled = (
            None if grad is None else (grad * grad_outputs[0].to(grad.dtype)).to(dtype)
            for grad, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return *scaled, *[None] * 5


@dataclass(frozen=True)
class _Classes:
    """The classes of this process.

    Attributes:
        vocab: real ones.
        shard: where several processes share the classes.
        terms: of the loss.
    """

    vocab: int
    shard: VocabularyShard | None
    terms: LossTerms

    @property
    def start(self) -> int:
        """The first of them, among those of all processes."""
        return 0 if self.shard is None else self.shard.start

    @property
    def spread(self) -> float:
        """What each class has of a smoothed target."""
        num_classes = self.vocab if self.shard is None else self.shard.num_classes
        return self.terms.label_smoothing / num_classes

    def over_shards(self, values: Tensor, how: Any) -> Tensor:
        """Reduced over the processes that share the classes."""
        return values if self.shard is None else self.shard.reduce(values, how)


class _Scores:
    """The logits of a block of rows, their losses, and at last their gradients in their place.

    Args:
        classes: those of the columns that are real; the others are left out.
        loops: what is done number by number.
        logits_NV: without the bias, in the format of products.
        labels_N1: among the classes of all processes, or IGNORE.
        bias_V: of all columns.
        dtype: the format of sums.
    """

    def __init__(
        self,
        classes: _Classes,
        loops: Loops,
        logits_NV: Tensor,
        labels_N1: Tensor,
        bias_V: Tensor | None,
        dtype: torch.dtype,
    ) -> None:
        self.classes, self.loops, self.dtype, self.labels_N1 = classes, loops, dtype, labels_N1
        self.real, self.padding = logits_NV[:, : classes.vocab], logits_NV[:, classes.vocab :]
        self.bias = None if bias_V is None else bias_V[: classes.vocab]
        self.labelled = labels_N1 != IGNORE
        self.own = (labels_N1 >= classes.start) & (labels_N1 < classes.start + classes.vocab)
        self.target = (labels_N1 - classes.start).where(self.own, 0)
        none = labels_N1.new_zeros(labels_N1.shape, dtype=dtype)
        if classes.vocab == 0:
            at_label, highest, sums, total = none, torch.full_like(none, -math.inf), none, none
        else:
            at_label = self.real.gather(1, self.target).to(dtype)
            at_label = (at_label if self.bias is None else at_label + self.bias[self.target]).where(
                self.own, 0
            )
            highest, sums, total = loops.statistics(self.real, self.bias, dtype)
        self.highest = classes.over_shards(highest.clone(), dist.ReduceOp.MAX)
        summed = torch.cat([sums * (highest - self.highest).exp(), at_label, total], dim=1)
        sums, self.at_label, self.total = classes.over_shards(summed, dist.ReduceOp.SUM).split(1, dim=1)
        self.logsumexp = sums.log() + self.highest

    def losses(self) -> Tensor:
        """(N, 1), 0 where there is no label."""
        terms, scores = self.classes.terms, self.at_label * (1.0 - self.classes.terms.label_smoothing)
        if self.classes.spread:
            scores = scores + self.classes.spread * self.total
        return (self.logsumexp - scores + terms.z_loss * self.logsumexp.square()).where(self.labelled, 0)

    def count_correct(self) -> Tensor:
        """How many labels have the highest logit of their row; of equal ones the first class counts."""
        best = self.labelled & (self.at_label == self.highest)
        # Looking for places takes a CPU far longer than for the highest: only where it is needed.
        rows = best[:, 0].nonzero()[:, 0] if best.device.type == "cpu" else slice(None)
        numbers = numbers_of(self.real[rows], self.bias, self.dtype)
        places = torch.arange(numbers.shape[1], device=numbers.device) + self.classes.start
        earlier = ((numbers == self.highest[rows]) & (places < self.labels_N1[rows])).any(dim=1, keepdim=True)
        return (best[rows] & ~self.classes.over_shards(earlier, dist.ReduceOp.MAX)).sum()

    def to_gradients(self) -> None:
        """Put the gradients where the logits were.

        d loss / d logits = softmax * (1 + 2 z logsumexp) - target, and nothing where there is no label.
        """
        terms, spread = self.classes.terms, self.classes.spread
        factor = self.labelled * (1.0 + 2.0 * terms.z_loss * self.logsumexp)
        spreads = self.labelled * torch.full_like(factor, spread) if spread else None
        self.padding.zero_()
        if self.classes.vocab == 0:
            return
        self.loops.gradient(self.real, self.bias, self.logsumexp, factor, spreads)
        # Of the label itself from the exact score, not from what was rounded to the format of products.
        at_label = (self.at_label - self.logsumexp).exp() * factor - (1.0 - terms.label_smoothing)
        at_label = (at_label if spreads is None else at_label - spreads).to(self.real.dtype)
        places = torch.arange(len(self.real), device=self.real.device)[:, None], self.target
        self.real[places] = at_label.where(self.own, self.real[places])  # scatter_ copies all
