"""Statistics of training steps, kept on the device until somebody wants to read them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from llmtrain.utils import dist


class Tracker:
    """Collects additive statistics of each step; nothing waits for the device before `reduce`.

    The values of a step are summed over the processes in the order of their ranks, in fp64, and averaged
    over the steps since the last report. All of that depends upon the steps alone and not upon when
    somebody looked, so a resumed run reports the same bits.
    """

    def __init__(self) -> None:
        self.pending: list[dict[str, Tensor]] = []
        self.window: list[dict[str, float]] = []

    def record(self, stats: dict[str, Tensor]) -> None:
        """Add one step: local parts of its statistics, scalars on any device."""
        self.pending.append(stats)

    def reduce(self) -> None:
        """Sum what is pending over the processes. Collective."""
        if not self.pending:
            return
        names = list(self.pending[0])
        local = torch.stack([torch.stack([stats[name].float() for name in names]) for stats in self.pending])
        self.pending = []
        total = dist.gather(local.cpu()).double().sum(dim=0)
        self.window += [dict(zip(names, values, strict=True)) for values in total.tolist()]

    def report(self) -> dict[str, float]:
        """Mean of each statistic over the steps since the last report. Collective.

        Values that are not finite belong to steps that were skipped, and are left out; the mean is NaN
        where no other is there.
        """
        self.reduce()
        steps = self.window
        self.window = []
        if not steps:
            return {}
        return {name: _mean([stats[name] for stats in steps]) for name in steps[0]}

    def state_dict(self) -> list[dict[str, Any]]:
        """The steps that were not reported yet. Collective."""
        self.reduce()
        return list(self.window)

    def load_state_dict(self, state: list[dict[str, Any]]) -> None:
        """Go on with unreported steps."""
        self.window = list(state)
        self.pending = []


def _mean(values: list[float]) -> float:
    """Mean of the finite values."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan
