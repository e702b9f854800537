"""A moving average of the weights, which is evaluated and exported in their place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from llmtrain.utils.shares import own_share

WARM_UP = 9.0
"""See `Average`."""


class Average:
    """Exponential moving average of the parameters that learn (Polyak & Juditsky 1992; of this form:
    Szegedy et al. 2016, section 8).

    After step t the average moves towards the weights by max(1 - decay, 9 / (10 + t)) of the difference, so
    that the first weights are soon forgotten: the decay is min(decay, (1 + t) / (10 + t)), as in TensorFlow's
    `ExponentialMovingAverage`. A step that was skipped does not count.

    Each process keeps the averages of its own shares: nothing is exchanged.

    Args:
        parameters: by name, each once; those that do not learn are left out.
        decay: above 0 and below 1.

    Attributes:
        averages: by name, shared out as the parameters are. Not filled before `start` or a checkpoint.
        count: t, the steps that counted; a scalar on the device.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.decay = decay
        self.parameters = {name: one for name, one in parameters.items() if one.requires_grad}
        self.averages = {name: torch.empty_like(one.detach()) for name, one in self.parameters.items()}
        device = next((own_share(one).device for one in parameters.values()), torch.device("cpu"))
        self.count = torch.zeros((), device=device)

    def start(self) -> None:
        """Take the weights as they are."""
        for average, weight in self._pairs():
            average.copy_(weight)

    @torch.no_grad()
    def update(self, counts: Tensor) -> None:
        """Move towards the weights.

        Args:
            counts: whether they were changed, a bool on the device: nobody waits for it.
        """
        self.count += counts
        share = (WARM_UP / (10.0 + self.count)).clamp(min=1.0 - self.decay) * counts
        if self.averages:
            averages, weights = map(list, zip(*self._pairs(), strict=True))
            torch._foreach_lerp_(averages, weights, [share] * len(averages))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the averages stand where the weights are, and put the weights back, bit by bit."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        """Exchange averages and weights, one tensor after the other: there is no second copy of all."""
        for average, weight in self._pairs():
            weights = weight.clone()
            weight.copy_(average)
            average.copy_(weights)

    def _pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """What this process has of each average and of its parameter."""
        for name, parameter in self.parameters.items():
            yield own_share(self.averages[name]), own_share(parameter)


def standing(average: Average | None) -> AbstractContextManager[None]:
    """Let an average stand where the weights are; where none is kept, nothing happens."""
    return nullcontext() if average is None else average.in_place()
