"""Lion (Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms")."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch


class Lion(torch.optim.Optimizer):
    """Steps of one size in the direction of the sign of a mean gradient (Chen et al. 2023, algorithm 2).

    Args:
        groups: of parameters.
        lr: size of a step.
        betas: share of the mean gradient in the direction of a step, and decay of the mean.
        weight_decay: decoupled, times the rate.
    """

    def __init__(
        self,
        groups: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Change the parameters that have a gradient."""
        assert closure is None, "the loss is not computed again"
        for group in self.param_groups:
            share, decay = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["mean"] = torch.zeros_like(parameter)
                direction = state["mean"].lerp(parameter.grad, 1 - share).sign_()
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-group["lr"])
                state["mean"].lerp_(parameter.grad, 1 - decay)
