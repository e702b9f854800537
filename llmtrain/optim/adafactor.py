"""Adafactor (Shazeer & Stern 2018, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost")."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from llmtrain.utils.shares import own_share


class Adafactor(torch.optim.Optimizer):
    """Algorithm 4 of the paper, operation by operation as `torch.optim.Adafactor` without `foreach`.

    Torch's stops where matrices are shared out. Here each process has the factors of a matrix (means over
    rows and over columns) whole, as they take next to no memory, and its shares of all else; sums go over
    the processes.

    Args:
        groups: of parameters.
        lr: as a share of the size of the weights.
        beta2_decay: the mean of squared gradients decays by 1 - step ** beta2_decay.
        clip_update: updates are scaled down to this root mean square.
        weight_decay: decoupled, times the rate.
        eps: the least size of weights.
    """

    def __init__(
        self,
        groups: Iterable[Any],
        lr: float,
        beta2_decay: float = -0.8,
        clip_update: float = 1.0,
        weight_decay: float = 0.0,
        eps: float = 1e-3,
    ) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})
        self.beta2_decay, self.clip_update, self.eps = beta2_decay, clip_update, eps

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Change the parameters that have a gradient. Collective where they are shared out."""
        assert closure is None, "the loss is not computed again"
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._change(parameter, parameter.grad, group["lr"], group["weight_decay"])

    def _change(self, parameter: Tensor, gradient: Tensor, lr: float, weight_decay: float) -> None:
        state = self.state[parameter] or self._new_state(parameter, gradient)
        state["step"] += 1
        step = state["step"].item()
        size = whole(parameter.norm(2)).item() / parameter.numel() ** 0.5
        rate = max(self.eps, size) * min(lr, 1 / step**0.5)
        weights = own_share(parameter)
        if weight_decay != 0:
            weights.mul_(1 - lr * weight_decay)
        least = torch.finfo(parameter.dtype).eps
        squares = self._squares(state, gradient, step**self.beta2_decay, least)
        update = squares.clamp_(min=least * least).rsqrt_().mul_(own_share(gradient))
        length = whole(shared_like(update, parameter).norm(2)).item()
        rate /= max(1.0, length / (parameter.numel() ** 0.5 * self.clip_update))
        weights.add_(update, alpha=-rate)

    def _new_state(self, parameter: Tensor, gradient: Tensor) -> dict[str, Tensor]:
        """Zeros: of a matrix R x C two factors, (R, 1) and (1, C), else one number for each."""
        state = self.state[parameter]
        state["step"] = torch.tensor(0.0)
        if gradient.ndim > 1:
            *outer, rows, columns = gradient.shape
            state["row_var"] = own_share(gradient).new_zeros(*outer, rows, 1)
            state["col_var"] = own_share(gradient).new_zeros(*outer, 1, columns)
        else:
            state["variance"] = torch.zeros_like(gradient)
        return state

    def _squares(self, state: dict[str, Tensor], gradient: Tensor, share: float, least: float) -> Tensor:
        """What squared gradients are estimated to be, of this process's share."""
        if gradient.ndim == 1:
            squares = own_share(state["variance"])
            return squares.lerp_(own_share(gradient) * own_share(gradient), share).clone()
        for key, dim in (("row_var", -1), ("col_var", -2)):
            norms = whole(torch.norm(gradient, dim=dim, keepdim=True))
            state[key].lerp_(norms.square_().div_(gradient.size(dim)), share)
        row, column = state["row_var"], state["col_var"]
        own_row, own_column = own_factors(row, column, gradient)
        return (own_row @ own_column).div_(row.mean(dim=-2, keepdim=True).clamp_(min=least))


def own_factors(row: Tensor, column: Tensor, gradient: Any) -> tuple[Tensor, Tensor]:
    """What belongs to the share of a gradient of factors (R, 1) and (1, C)."""
    if not hasattr(gradient, "to_local"):
        return row, column
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, start = compute_local_shape_and_global_offset(
        gradient.shape, gradient.device_mesh, gradient.placements
    )
    return row.narrow(-2, start[-2], shape[-2]), column.narrow(-1, start[-1], shape[-1])


def whole(tensor: Any) -> Tensor:
    """A tensor put together from the shares of all processes. Collective."""
    full: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full


def shared_like(own: Tensor, parameter: Any) -> Tensor:
    """The tensor whose shares are placed as those of a parameter; good for sums over all of it."""
    if not hasattr(parameter, "to_local"):
        return own
    from torch.distributed.tensor import DTensor, Shard

    # Which part of the tensor a share is of makes no difference to a sum.
    places = [Shard(0) if one.is_shard() else one for one in parameter.placements]
    return DTensor.from_local(own, parameter.device_mesh, places, run_check=False)
