"""Muon for the matrices of the blocks, AdamW for all else."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from llmtrain.optim.orthogonal import orthogonalise
from llmtrain.optim.owners import Owners, is_shared_out
from llmtrain.utils.shares import own_share

MATCH = 0.2
"""Root mean square of AdamW's updates in practice (Liu et al. 2025, section 2.2)."""

WAITS = ("cpu",)
"""Devices on which a look at a number costs nothing."""


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, made orthogonal (Jordan et al. 2024, "Muon"), for groups with `hidden`; AdamW for
    the others.

    An orthogonal update of a matrix R x C has a root mean square of 1 / sqrt(max(R, C)); it is scaled by
    0.2 sqrt(max(R, C)), so that rates and weight decay mean what they mean for AdamW (Liu et al. 2025, "Muon
    is Scalable for LLM Training", equation 4).

    Where processes have shares of a matrix, one of them gathers it, makes it orthogonal and sends out the
    shares of the result; every process so works on some of the matrices.

    Args:
        groups: with `hidden`: 2-d parameters; the others: any. Each with `lr` and `weight_decay`.
        momentum: share of the mean gradient that is kept.
        products: type in which matrices are multiplied.
        betas: of AdamW.
        eps: of AdamW.
    """

    _step_supports_amp_scaling = True  # looks at `found_inf`, as torch's fused optimizers do

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        momentum: float = 0.95,
        products: torch.dtype = torch.bfloat16,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
    ) -> None:
        nothing: dict[str, Any] = {"params": [], "lr": 0.0, "weight_decay": 0.0}
        hidden = [group for group in groups if group.get("hidden")] or [dict(nothing, hidden=True)]
        others = [group for group in groups if not group.get("hidden")] or [nothing]
        self.adam = torch.optim.AdamW(others, betas=betas, eps=eps, fused=True)
        super().__init__(hidden, {})
        self.hidden = list(self.param_groups)
        # One list of groups and one place for the state: whoever holds this optimizer sees all of it.
        self.param_groups += self.adam.param_groups
        self.adam.state = self.state
        self.momentum, self.products = momentum, products
        for group in self.hidden:
            for parameter in group["params"]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Change the parameters that have a gradient, unless `found_inf` says not to."""
        assert closure is None, "the loss is not computed again"
        found = getattr(self, "found_inf", None)
        self.adam.found_inf = found  # type: ignore[attr-defined]
        self.adam.step()
        if found is not None and found.device.type in WAITS:
            if found:
                return
            found = None
        # On a GPU nobody waits for the answer: everything is done, with a factor of 0.
        kept = 1.0 if found is None else 1.0 - found
        learning = [
            (group, parameter)
            for group in self.hidden
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        directions = [self._direction(parameter, kept) for _, parameter in learning]
        updates = self._orthogonal([parameter for _, parameter in learning], directions)
        for (group, parameter), update in zip(learning, updates, strict=True):
            rate = group["lr"] * kept
            own = own_share(parameter)
            own.mul_(1.0 - rate * group["weight_decay"])
            factor = rate * MATCH * math.sqrt(max(parameter.shape))
            if isinstance(factor, Tensor):
                own.sub_(update * factor)
            else:
                own.add_(update, alpha=-factor)

    def _direction(self, parameter: Tensor, kept: float | Tensor) -> Tensor:
        """Where a parameter goes, of this process's share; the momentum goes on."""
        assert parameter.grad is not None
        gradient, mean = own_share(parameter.grad), own_share(self.state[parameter]["momentum"])
        if isinstance(kept, Tensor):
            gradient = torch.where(kept > 0, gradient, 0.0)
            mean.add_((gradient - mean) * ((1.0 - self.momentum) * kept))
        else:
            mean.lerp_(gradient, 1.0 - self.momentum)
        return gradient.lerp(mean, self.momentum).to(self.products)

    def _orthogonal(self, parameters: Sequence[Tensor], directions: Sequence[Tensor]) -> list[Tensor]:
        """This process's shares of what the directions become; all of them are whole, or shared out."""
        if not parameters:
            return []
        if self._owners is None:
            return orthogonalise(directions)
        assert len(parameters) == len(self._owners.owners), "a matrix without gradient has no place here"
        whole = self._owners.gather(directions)
        results = orthogonalise(list(whole.values()))
        return self._owners.scatter(dict(zip(whole, results, strict=True)), directions)

    @cached_property
    def _owners(self) -> Owners | None:
        """Of the matrices; None where every process has all of them."""
        matrices = [parameter for group in self.hidden for parameter in group["params"]]
        if not any(is_shared_out(matrix) for matrix in matrices):
            return None
        return Owners(matrices, dist.get_rank())
