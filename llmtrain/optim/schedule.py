"""Learning-rate schedules: a factor as a function of the step, without state."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from llmtrain.schema.optim import (
    ConstantSchedule,
    CosineSchedule,
    LinearSchedule,
    PolynomialSchedule,
    ScheduleConfig,
    WSDSchedule,
)

Shape = Callable[[float], float]
"""Progress after the warm-up, 0 to 1 -> factor of the highest learning rate."""


def build_constant(config: ConstantSchedule) -> Shape:
    """Always the highest rate."""
    return lambda progress: 1.0


def build_linear(config: LinearSchedule) -> Shape:
    """A straight line from 1 to `final_ratio`."""
    return lambda progress: 1.0 - (1.0 - config.final_ratio) * progress


def build_cosine(config: CosineSchedule) -> Shape:
    """Half a cosine from 1 to `final_ratio` (Loshchilov & Hutter 2017)."""
    swing = 0.5 * (1.0 - config.final_ratio)
    return lambda progress: config.final_ratio + swing * (1.0 + math.cos(math.pi * progress))


def build_polynomial(config: PolynomialSchedule) -> Shape:
    """A power of what is left, from 1 to `final_ratio`."""
    return lambda progress: config.final_ratio + (1.0 - config.final_ratio) * (1.0 - progress) ** config.power


def build_wsd(config: WSDSchedule) -> Shape:
    """1, and in the last part down to `final_ratio` by 1 - sqrt(progress of that part), which leads to a
    lower loss than a line (Hägele et al. 2024)."""

    def shape(progress: float) -> float:
        part = max(0.0, (progress - (1.0 - config.decay)) / config.decay)
        return 1.0 - (1.0 - config.final_ratio) * math.sqrt(part)

    return shape


SCHEDULES: dict[type, Callable[[Any], Shape]] = {
    ConstantSchedule: build_constant,
    LinearSchedule: build_linear,
    CosineSchedule: build_cosine,
    PolynomialSchedule: build_polynomial,
    WSDSchedule: build_wsd,
}
"""Shapes after the warm-up."""


class Schedule:
    """Linear warm-up, then a shape over the rest of the run.

    Args:
        config: shape and warm-up (below 1 a share of the run, from 1 on steps).
        total_steps: length of the run.
        builders: shape for each config class.
    """

    def __init__(
        self,
        config: ScheduleConfig,
        total_steps: int,
        builders: Mapping[type, Callable[[Any], Shape]] = SCHEDULES,
    ) -> None:
        self.shape = builders[type(config)](config)
        ratio = config.warmup < 1
        self.warmup_steps = round(config.warmup * total_steps) if ratio else int(config.warmup)
        self.total_steps = total_steps

    def factor(self, step: int) -> float:
        """Factor of the highest learning rate for the step with this number, counted from 0.

        The first step already learns (factor 1/warmup), and the last one still does: progress 1 is
        reached just after it.
        """
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        return self.shape(min(1.0, progress))
