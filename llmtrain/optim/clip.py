"""The global gradient norm, and clipping by it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale all gradients so that their global L2 norm is at most `max_norm` (Pascanu et al. 2013).

    Args:
        parameters: those without a gradient are passed over; collective where they are shared out.
        max_norm: 0 measures only.

    Returns:
        the norm before clipping, a scalar on the device; not finite if any gradient is not.
    """
    parameters = list(parameters)
    norm = gradient_norm(parameters)
    clip_by_norm(parameters, max_norm, norm)
    return norm


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """The global L2 norm of the gradients that are there, a scalar."""
    norm = torch.nn.utils.get_total_norm([one.grad for one in parameters if one.grad is not None])
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


def clip_by_norm(parameters: Iterable[nn.Parameter], max_norm: float, norm: Tensor) -> None:
    """Scale all gradients by `max_norm / norm` where that is below 1; `max_norm` 0 leaves them alone."""
    if max_norm > 0:
        # A factor of NaN would spoil every gradient and hide which one was bad; infinity zeroes the good.
        torch.nn.utils.clip_grads_with_norm_(
            [one for one in parameters if one.grad is not None],
            max_norm,
            norm.nan_to_num(nan=torch.inf, posinf=torch.inf),
        )
