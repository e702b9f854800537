"""Dropout with cheap randomness on CPUs.

Reason: PyTorch draws a Bernoulli number for each element on one core and without vector units; on 4 million
elements this takes 24 ms, ten times what the rest of dropout takes. Here every 64 random bits decide about
four elements, and come from a generator (SFC64, Chris Doty-Humphrey) that makes them in 1.7 ms, half of what
PyTorch's takes; it is seeded from PyTorch's for each mask. Rates are exact to 1/65,536, and the scale is that
of the rounded rate, so that the mean is kept exactly. The backward pass needs one byte per element.

In compiled code the mask is drawn by an operator that stays as it is: forward and backward on 1.6 million
elements take 5 ms of one core; with the code that inductor makes of the drawing 15 ms.

The eager reference is `torch.nn.functional.dropout`; the switch is `LLMTRAIN_KERNELS=0`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS = 1 << 16
"""A random number of 16 bits decides about each element."""


def dropout(x: Tensor, rate: float) -> Tensor:
    """Set each element to 0 with probability `rate` and scale the others up by 1 / (1 - rate).

    Args:
        x: any shape.
        rate: at least 0, below 1.
    """
    if rate == 0:
        return x
    if x.device.type != "cpu" or os.environ.get("LLMTRAIN_KERNELS") == "0":
        return F.dropout(x, rate)  # a GPU draws numbers in parallel
    result: Tensor = _Dropout.apply(x, *keep_mask(x.shape, rate, x))
    return result


def keep_mask(shape: Sequence[int], rate: float, source: Tensor | None = None) -> tuple[Tensor, float]:
    """Which elements stay, and what they are multiplied by.

    Args:
        shape: of the mask.
        rate: probability of 0.
        source: what it is drawn for; a compiler needs it.

    Returns:
        mask: uint8 on the CPU, 1 or 0; PyTorch's default generator decides about it.
        scale: the inverse of the share that stays.
    """
    dropped = min(round(rate * LEVELS), LEVELS - 1)
    if source is not None and torch.compiler.is_compiling():
        keep: Tensor = drawn_for(source.detach(), list(shape), dropped)
    else:
        keep = drawn(shape, dropped)
    return keep, LEVELS / (LEVELS - dropped)


def drawn(shape: Sequence[int], dropped: int) -> Tensor:
    """A mask, uint8, in which `dropped` of LEVELS numbers are 0 on average."""
    numel = math.prod(shape)
    seed = int(torch.randint((1 << 63) - 1, (1,)))
    words = np.random.SFC64(seed).random_raw(-(-numel // 4)).view(np.int16)
    numbers = torch.from_numpy(words)[:numel].view(torch.Size(shape))  # from -LEVELS / 2 on
    # Within 16 bits; a comparison that gives bytes takes five times as long.
    return numbers.ge_(dropped - LEVELS // 2).to(torch.uint8)


@torch.library.custom_op("llmtrain::drawn_for", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def drawn_for(source: Tensor, shape: Sequence[int], dropped: int) -> Tensor:
    """`drawn` as an operator that compilers leave alone; the source tells two masks of one shape apart, of
    which they would make one."""
    return drawn(shape, dropped)


@drawn_for.register_fake
def _(source: Tensor, shape: Sequence[int], dropped: int) -> Tensor:
    return torch.empty(shape, dtype=torch.uint8)


def kept(x: Tensor, keep: Tensor, scale: float) -> Tensor:
    """What stays, scaled, in one pass."""
    return torch.addcmul(x.new_zeros(()), x, keep.to(x.dtype), value=scale)


class _Dropout(torch.autograd.Function):
    """Keeps the mask as bytes; multiplying by numbers of one format is what runs fast."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, keep: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(keep)
        ctx.scale = scale
        return kept(x, keep, scale)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = grad_outputs
        (keep,) = ctx.saved_tensors
        return kept(grad, keep, ctx.scale), None, None
