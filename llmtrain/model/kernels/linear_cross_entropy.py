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
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from llmtrain.data.batch import IGNORE
from llmtrain.model.kernels.loops import EAGER, Loops, numbers_of
from llmtrain.model.kernels.products import turns_hidden

MAX_LOGITS = 1 << 27
"""Logits held at once, and as many exponentials (256 MB each in bf16); fewer, larger products are faster."""

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
        # Padding is multiplied as well: products of round sizes are faster.
        weight = weight_VD.to(dtype)
        total, correct = (hidden_ND.new_zeros((), dtype=sum_dtype) for _ in range(2))
        gradients = _Gradients(hidden_ND, weight_VD, bias_V, sum_dtype, ctx.needs_input_grad, loops)
        # By the rows of the weight, padding included: those who share the vocabulary have equally many, and
        # exchange what they find block by block.
        num_blocks = max(1, math.ceil(len(hidden_ND) * len(weight_VD) / MAX_LOGITS))
        rows = max(1, math.ceil(len(hidden_ND) / num_blocks))
        for first in range(0, len(hidden_ND), rows):
            block = slice(first, first + rows)
            logits = F.linear(hidden_ND[block].to(dtype), weight)
            scores = _Scores(classes, loops, logits, labels_N[block, None], bias_V, sum_dtype)
            if count_correct:
                correct += scores.count_correct()
            total += scores.losses().sum()
            if any(ctx.needs_input_grad[:3]):
                gradients.add(block, weight, *scores.gradients())
        if classes.spread:
            total -= gradients.smooth(classes, weight, labels_N)
        if classes.shard is not None and gradients.hidden is not None:
            classes.shard.reduce(gradients.hidden, dist.ReduceOp.SUM)
        ctx.save_for_backward(gradients.hidden, gradients.weight, gradients.bias)
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
    """The logits of a block of rows, their losses, and what their gradients are made of.

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
        self.real = logits_NV[:, : classes.vocab]
        self.bias = None if bias_V is None else bias_V[: classes.vocab]
        self.labelled = labels_N1 != IGNORE
        self.own = (labels_N1 >= classes.start) & (labels_N1 < classes.start + classes.vocab)
        self.target = (labels_N1 - classes.start).where(self.own, 0)
        # Not where the logits are: compiled loops over 16-bit numbers take twice as long in place, since each
        # read waits for the write before it, which it overlaps.
        self.exponentials_NV = torch.empty_like(logits_NV)
        self.exponentials_NV[:, classes.vocab :].zero_()
        exponentials = self.exponentials_NV[:, : classes.vocab]
        if classes.shard is None:
            self.at_label = self._at_label()
            self.highest, self.sums = loops.exponentials(self.real, self.bias, None, exponentials, dtype)
        else:
            self._find_over_shards(classes.shard, exponentials)
        self.logsumexp = self.sums.log() + self.highest

    def _at_label(self) -> Tensor:
        """Scores of the labels, (N, 1), lowest where a label is none of the own classes."""
        lowest = torch.full_like(self.labels_N1, -math.inf, dtype=self.dtype)
        if self.classes.vocab == 0:
            return lowest
        scores = self.real.gather(1, self.target).to(self.dtype)
        return (scores if self.bias is None else scores + self.bias[self.target]).where(self.own, lowest)

    def _find_over_shards(self, shard: VocabularyShard, exponentials: Tensor) -> None:
        """The exponentials relative to the highest of all processes, and their sums."""
        any_own = self.classes.vocab > 0
        at_label = self._at_label()
        highest = self.loops.highest(self.real, self.bias, self.dtype) if any_own else at_label
        both = shard.reduce(torch.cat([at_label, highest], dim=1), dist.ReduceOp.MAX)
        self.at_label, self.highest = both.split(1, dim=1)
        sums = self.highest.new_zeros(self.highest.shape)
        if any_own:
            _, sums = self.loops.exponentials(self.real, self.bias, self.highest, exponentials, self.dtype)
        self.sums = shard.reduce(sums, dist.ReduceOp.SUM)

    def count_correct(self) -> Tensor:
        """How many labels have the highest logit of their row; of equal ones the first class counts."""
        best = self.labelled & (self.at_label == self.highest)
        # Looking for places takes a CPU far longer than for the highest: only where it is needed.
        rows = best[:, 0].nonzero()[:, 0] if best.device.type == "cpu" else slice(None)
        numbers = numbers_of(self.real[rows], self.bias, self.dtype)
        places = torch.arange(numbers.shape[1], device=numbers.device) + self.classes.start
        earlier = ((numbers == self.highest[rows]) & (places < self.labels_N1[rows])).any(dim=1, keepdim=True)
        return (best[rows] & ~self.classes.over_shards(earlier, dist.ReduceOp.MAX)).sum()

    def losses(self) -> Tensor:
        """(N, 1), 0 where there is no label, and without what a smoothed target has of the other classes."""
        terms = self.classes.terms
        losses = self.logsumexp - (1.0 - terms.label_smoothing) * self.at_label
        return (losses + terms.z_loss * self.logsumexp.square()).where(self.labelled, 0)

    def gradients(self) -> tuple[Tensor, Tensor]:
        """Numbers whose rows, times a factor of each, are the gradients.

        d loss / d logits = softmax * (1 + 2 z logsumexp) - target, and nothing where there is no label, with
        softmax = exponential / sum. Dividing (N, D) of a product's rows instead of (N, V) saves one more
        pass over all classes.

        Returns:
            rows: (N, V) in the format of products, in place of the exponentials.
            factor: (N, 1) in the format of sums.
        """
        terms, rows = self.classes.terms, self.exponentials_NV
        of_softmax = 1.0 + 2.0 * terms.z_loss * self.logsumexp
        factor = self.labelled * of_softmax / self.sums
        # At the label from the exact score, not from what was rounded to the format of products.
        at_label = (self.at_label - self.highest).exp()
        at_label = at_label - (1.0 - terms.label_smoothing) * self.sums / of_softmax
        if rows.dtype == torch.float16:  # its range is too short for what such factors are taken out of
            rows.mul_(factor)
            at_label, factor = at_label * factor, torch.ones_like(factor)
        if self.classes.vocab > 0:
            places = torch.arange(len(rows), device=rows.device)[:, None], self.target
            rows[places] = at_label.to(rows.dtype).where(self.own, rows[places])  # scatter_ copies all
        return rows, factor


class _Gradients:
    """Gradients of the hidden states, the weight and the bias, those that are needed.

    Args:
        hidden_ND: hidden states.
        weight_VD: projection.
        bias_V: of its classes.
        dtype: the format of sums.
        needed: of those three.
        loops: what is done number by number.
    """

    def __init__(
        self,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        dtype: torch.dtype,
        needed: Sequence[bool],
        loops: Loops,
    ) -> None:
        self.hidden_ND, self.bias_V, self.dtype, self.loops = hidden_ND, bias_V, dtype, loops
        self.hidden = torch.empty_like(hidden_ND) if needed[0] else None
        self.weight = torch.empty_like(weight_VD, dtype=dtype) if needed[1] else None
        self.bias = torch.zeros_like(bias_V, dtype=dtype) if needed[2] and bias_V is not None else None
        if self.weight is not None and len(hidden_ND) == 0:
            self.weight.zero_()

    def add(self, block: slice, weight: Tensor, rows_NV: Tensor, factor_N1: Tensor) -> None:
        """Those of a block of rows whose logits have the gradients ``rows * factor``.

        Args:
            block: which rows.
            weight: in the format of products.
            rows_NV: see `_Scores.gradients`.
            factor_N1: likewise.
        """
        if self.bias is not None:
            self.bias += self.loops.sum_rows(rows_NV, factor_N1)
        if self.hidden is not None:
            self.hidden[block] = (rows_NV @ weight) * factor_N1
        if self.weight is not None:
            hidden = (self.hidden_ND[block] * factor_N1).to(weight.dtype)
            turned = self.loops.compiled and turns_hidden(hidden)
            product = (hidden.T.contiguous() @ rows_NV).T if turned else rows_NV.T @ hidden
            self.loops.put(self.weight, product, block.start > 0)

    def smooth(self, classes: _Classes, weight: Tensor, labels_N: Tensor) -> Tensor:
        """Add those of what a smoothed target has of every class, once, and give its share of the scores."""
        labelled_N = (labels_N != IGNORE).to(self.dtype)
        real = slice(classes.vocab)
        hidden_D, weight_D = labelled_N @ self.hidden_ND.to(self.dtype), weight[real].sum(0, dtype=self.dtype)
        total = hidden_D @ weight_D
        if self.bias_V is not None:
            total = total + labelled_N.sum() * self.bias_V[real].sum()
        if self.hidden is not None:
            self.hidden -= classes.spread * torch.outer(labelled_N, weight_D)
        if self.weight is not None:
            self.weight[real] -= classes.spread * hidden_D
        if self.bias is not None:
            self.bias[real] -= classes.spread * labelled_N.sum()
        return classes.spread * classes.over_shards(total, dist.ReduceOp.SUM)
