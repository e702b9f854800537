"""What the loss over a vocabulary does number by number, between its products: eager or compiled.

Logits are those of some real classes, (N, W), in the format of the products; what is worked out of them is in
the format of sums. Eager operations on a CPU take a few rows at a time, which stay in its cache: 1,200 rows
of 30,522 classes take 270 ms of one core as a whole, and 60 ms so. Compiled, each function is one loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

CACHED_LOGITS = 1 << 19
"""Logits that eager operations work on at once on a CPU (2 MB in fp32)."""


@dataclass(frozen=True)
class Loops:
    """The functions of this file, as they are or compiled.

    Attributes:
        compiled: whether they are; a compiled `put` also turns a matrix round in passing.
    """

    statistics: Callable[[Tensor, Tensor | None, torch.dtype], tuple[Tensor, Tensor, Tensor]]
    gradient: Callable[[Tensor, Tensor | None, Tensor, Tensor, Tensor | None], None]
    put: Callable[[Tensor, Tensor, bool], None]
    sum_rows: Callable[[Tensor, torch.dtype], Tensor]
    compiled: bool


def numbers_of(logits_NW: Tensor, bias_W: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The logits with their bias, in the format of sums; a copy."""
    numbers = logits_NW.to(dtype, copy=True)
    return numbers if bias_W is None else numbers.add_(bias_W)


def statistics(logits_NW: Tensor, bias_W: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """The highest of each row, the sum of the exponentials relative to it, and the sum; (N, 1) each."""
    numbers = numbers_of(logits_NW, bias_W, dtype)
    highest, total = numbers.amax(dim=1, keepdim=True), numbers.sum(dim=1, keepdim=True)
    return highest, numbers.sub_(highest).exp_().sum(dim=1, keepdim=True), total


def gradient(
    logits_NW: Tensor,
    bias_W: Tensor | None,
    logsumexp_N1: Tensor,
    factor_N1: Tensor,
    spread_N1: Tensor | None,
) -> None:
    """Write ``factor * softmax - spread`` over the logits."""
    shares = numbers_of(logits_NW, bias_W, logsumexp_N1.dtype)
    shares.sub_(logsumexp_N1).exp_().mul_(factor_N1)
    if spread_N1 is not None:
        shares.sub_(spread_N1)
    logits_NW.copy_(shares)


def put(total: Tensor, product: Tensor, add: bool) -> None:
    """Add to a sum, or start it; the product may have another format and be turned round."""
    if add:
        total.add_(product)
    else:
        total.copy_(product)


def sum_rows(gradient_NV: Tensor, dtype: torch.dtype) -> Tensor:
    """Over the rows, (V,)."""
    return gradient_NV.sum(dim=0, dtype=dtype)


def groups(logits_NW: Tensor) -> Iterator[slice]:
    """A few rows at a time on a CPU, else all."""
    length, width = logits_NW.shape
    step = max(1, CACHED_LOGITS // width if logits_NW.device.type == "cpu" else length)
    for start in range(0, length, step):
        yield slice(start, start + step)


def statistics_by_groups(
    logits_NW: Tensor, bias_W: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """`statistics`, eager."""
    found = [statistics(logits_NW[rows], bias_W, dtype) for rows in groups(logits_NW)]
    highest, sums, totals = (torch.cat(parts) for parts in zip(*found, strict=True))
    return highest, sums, totals


def gradient_by_groups(logits_NW: Tensor, bias_W: Tensor | None, *of_rows: Tensor | None) -> None:
    """`gradient`, eager."""
    for rows in groups(logits_NW):
        logsumexp, factor, spread = (None if one is None else one[rows] for one in of_rows)
        assert logsumexp is not None
        assert factor is not None
        gradient(logits_NW[rows], bias_W, logsumexp, factor, spread)


def sum_rows_by_groups(gradient_NV: Tensor, dtype: torch.dtype) -> Tensor:
    """`sum_rows`, eager, which makes a copy in the format of sums."""
    return torch.stack([sum_rows(gradient_NV[rows], dtype) for rows in groups(gradient_NV)]).sum(dim=0)


EAGER = Loops(statistics_by_groups, gradient_by_groups, put, sum_rows_by_groups, compiled=False)
"""As they are."""


def compiled_loops() -> Loops:
    """One loop for each function, for any number of rows."""
    return Loops(
        torch.compile(statistics, dynamic=True),
        torch.compile(gradient, dynamic=True),
        torch.compile(put, dynamic=True),
        torch.compile(sum_rows, dynamic=True),
        compiled=True,
    )
