"""The global gradient norm, and clipping by it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from llmtrain.optim.row_gradient import RowGradient

PART = 512
"""Numbers whose squares are summed up in fp32."""

SMALL = 1 << 14
"""Gradients of up to so many numbers are measured together on a CPU, where each call costs more than they."""


def clip_gradients(
    parameters: Iterable[nn.Parameter], max_norm: float, kept: Sequence[RowGradient] = ()
) -> Tensor:
    """Scale all gradients so that their global L2 norm is at most `max_norm` (Pascanu et al. 2013).

    Args:
        parameters: those without a gradient are passed over; collective where they are shared out.
        max_norm: 0 measures only.
        kept: gradients of some of the parameters, of which few rows are to be looked at.

    Returns:
        the norm before clipping, a scalar on the device; not finite if any gradient is not.
    """
    parameters = list(parameters)
    norm = gradient_norm(parameters, kept)
    clip_by_norm(parameters, max_norm, norm, kept)
    return norm


def gradient_norm(parameters: Iterable[nn.Parameter], kept: Sequence[RowGradient] = ()) -> Tensor:
    """The global L2 norm of the gradients that are there, a scalar; see `clip_gradients`."""
    gradients = [one.values() for one in kept]
    gradients += [one.grad for one in without(parameters, kept) if one.grad is not None]
    norm = torch.nn.utils.get_total_norm([part_norms(gradient) for gradient in joined(gradients)])
    norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    return norm.float()


def without(parameters: Iterable[nn.Parameter], kept: Sequence[RowGradient]) -> list[nn.Parameter]:
    """The parameters whose gradients are not kept."""
    others = {one.parameter for one in kept}
    return [one for one in parameters if one not in others]


def joined(gradients: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of the same norm, where the small ones in memory of a CPU have become one."""
    small = [type(one) is Tensor and one.device.type == "cpu" and one.numel() <= SMALL for one in gradients]
    rest = [one for one, is_small in zip(gradients, small, strict=True) if not is_small]
    numbers = [one.flatten() for one, is_small in zip(gradients, small, strict=True) if is_small]
    return [*rest, torch.cat(numbers)] if numbers else rest


def part_norms(gradient: Tensor) -> Tensor:
    """A small tensor of the same norm: the norms of parts of a gradient, fp64, shared out as it is.

    PyTorch sums up squares on a CPU in few sums of fp32: the norm of 38 million numbers comes out 0.2 % too
    small, that of 384,000 by 1e-5, and those of shares of a tensor by less. By parts it takes the same time
    and is exact to 2e-9. On a GPU sums are made as trees, and gradients stay as they are.
    """
    if gradient.device.type != "cpu":
        return gradient
    if hasattr(gradient, "to_local") and hasattr(gradient, "placements") and hasattr(gradient, "device_mesh"):
        from torch.distributed.tensor import DTensor, Shard  # takes a second, which one process need not wait

        norms = part_norms(gradient.to_local())
        # Which part of the tensor a share is of makes no difference to the sum of squares.
        places = [Shard(0) if one.is_shard() else one for one in gradient.placements]
        return DTensor.from_local(norms, gradient.device_mesh, places, run_check=False)
    numbers = gradient.flatten()
    whole = len(numbers) // PART * PART
    norms = torch.linalg.vector_norm(numbers[:whole].view(-1, PART), dim=1)
    if whole < len(numbers):
        norms = torch.cat([norms, torch.linalg.vector_norm(numbers[whole:])[None]])
    return norms.double()


def clip_by_norm(
    parameters: Iterable[nn.Parameter], max_norm: float, norm: Tensor, kept: Sequence[RowGradient] = ()
) -> None:
    """Scale all gradients by `max_norm / norm` where that is below 1; `max_norm` 0 leaves them alone."""
    # On a CPU one may look at the norm without waiting, and need not multiply by 1; NaN is not below either.
    small = norm.device.type == "cpu" and bool(norm + 1e-6 <= max_norm)
    if max_norm > 0 and not small:
        # A factor of NaN would spoil every gradient and hide which one was bad; infinity zeroes the good.
        norm = norm.nan_to_num(nan=torch.inf, posinf=torch.inf)
        others = [one for one in without(parameters, kept) if one.grad is not None]
        torch.nn.utils.clip_grads_with_norm_(others, max_norm, norm)
        for one in kept:
            one.multiply(max_norm / (norm + 1e-6))
