"""The global gradient norm, and clipping by it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale all gradients so that their global L2 norm is at most `max_norm` (Pascanu et al. 2013).

    Args:
        parameters: those without a gradient are passed over.
        max_norm: 0 measures only.

    Returns:
        the norm before clipping, a scalar on the device; not finite if any gradient is not.
    """
    parameters = [parameter for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(
        [parameter.grad for parameter in parameters if parameter.grad is not None]
    )
    if max_norm > 0:
        # A factor of NaN would spoil every gradient and hide which one was bad; infinity zeroes the good.
        torch.nn.utils.clip_grads_with_norm_(
            parameters, max_norm, norm.nan_to_num(nan=torch.inf, posinf=torch.inf)
        )
    return norm
