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

    highest: Callable[[Tensor, Tensor | None, torch.dtype], Tensor]
    exponentials: Callable[[Tensor, Tensor | None, Tensor | None, Tensor, torch.dtype], tuple[Tensor, Tensor]]
    put: Callable[[Tensor, Tensor, bool], None]
    sum_rows: Callable[[Tensor, Tensor], Tensor]
    compiled: bool


def numbers_of(logits_NW: Tensor, bias_W: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The logits with their bias, in the format of sums; a copy."""
    numbers = logits_NW.to(dtype, copy=True)
    return numbers if bias_W is None else numbers.add_(bias_W)


def highest(logits_NW: Tensor, bias_W: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The highest of each row, (N, 1)."""
    return numbers_of(logits_NW, bias_W, dtype).amax(dim=1, keepdim=True)


def exponentials(
    logits_NW: Tensor, bias_W: Tensor | None, highest_N1: Tensor | None, out_NW: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Write ``exp(logit - highest)``, and give the highest and the sum of each row, (N, 1) both.

    Without `highest_N1` it is that of these logits.
    """
    numbers = numbers_of(logits_NW, bias_W, dtype)
    top_N1 = numbers.amax(dim=1, keepdim=True) if highest_N1 is None else highest_N1
    numbers = numbers.sub_(top_N1).exp_()
    out_NW.copy_(numbers)
    return top_N1, numbers.sum(dim=1, keepdim=True)


def put(total: Tensor, product: Tensor, add: bool) -> None:
    """Add to a sum, or start it; the product may have another format and be turned round."""
    if add:
        total.add_(product)
    else:
        total.copy_(product)


def sum_rows(rows_NV: Tensor, factor_N1: Tensor) -> Tensor:
    """Over the rows times their factors, (V,)."""
    return (rows_NV * factor_N1).sum(dim=0)


def groups(logits_NW: Tensor) -> Iterator[slice]:
    """A few rows at a time on a CPU, else all."""
    length, width = logits_NW.shape
    step = max(1, CACHED_LOGITS // width if logits_NW.device.type == "cpu" else length)
    for start in range(0, length, step):
        yield slice(start, start + step)


def highest_by_groups(logits_NW: Tensor, bias_W: Tensor | None, dtype: torch.dtype) -> Tensor:
    """`highest`, eager."""
    return torch.cat([highest(logits_NW[rows], bias_W, dtype) for rows in groups(logits_NW)])


def exponentials_by_groups(
    logits_NW: Tensor, bias_W: Tensor | None, highest_N1: Tensor | None, out_NW: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """`exponentials`, eager."""
    found = [
        exponentials(
            logits_NW[rows], bias_W, None if highest_N1 is None else highest_N1[rows], out_NW[rows], dtype
        )
        for rows in groups(logits_NW)
    ]
    top_N1, sums_N1 = (torch.cat(parts) for parts in zip(*found, strict=True))
    return top_N1, sums_N1


def sum_rows_by_groups(rows_NV: Tensor, factor_N1: Tensor) -> Tensor:
    """`sum_rows`, eager, which makes a copy in the format of sums."""
    return torch.stack([sum_rows(rows_NV[rows], factor_N1[rows]) for rows in groups(rows_NV)]).sum(dim=0)


EAGER = Loops(highest_by_groups, exponentials_by_groups, put, sum_rows_by_groups, compiled=False)
"""As they are."""


def compiled_loops() -> Loops:
    """One loop for each function, for any number of rows."""
    return Loops(
        torch.compile(highest, dynamic=True),
        torch.compile(exponentials, dynamic=True),
        torch.compile(put, dynamic=True),
        torch.compile(sum_rows, dynamic=True),
        compiled=True,
    )
