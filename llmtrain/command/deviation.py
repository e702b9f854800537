"""How far the curves of two runs are apart, read from their `metrics.jsonl`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmtrain.schema.verify import VerifyConfig
from llmtrain.utils.io import read_json_lines
from llmtrain.utils.run_directory import RunDirectory


@dataclass(frozen=True)
class Curve:
    """What is compared of a run; numbers that were not finite are NaN.

    Attributes:
        losses: of each step, in nats per label.
        norms: of the gradient before clipping, of each step.
        validation_loss: of the last evaluation, or None where nothing is validated.
    """

    losses: Mapping[int, float] = field(default_factory=dict)
    norms: Mapping[int, float] = field(default_factory=dict)
    validation_loss: float | None = None

    @property
    def finite(self) -> bool:
        """Whether it can be compared with at all."""
        validation = [] if self.validation_loss is None else [self.validation_loss]
        return all(map(math.isfinite, [*self.losses.values(), *self.norms.values(), *validation]))


@dataclass(frozen=True)
class Deviation:
    """Greatest relative deviations, of all steps; infinite where a number is missing or not finite.

    Attributes:
        validation_loss: None where nothing is validated.
        where: `at step 7` or `in validation`: the first that is beyond a tolerance; empty where all is equal.
    """

    loss: float
    gradient_norm: float
    validation_loss: float | None
    where: str = ""


def read_curve(directory: Path) -> Curve:
    """The curve of a run that logged every step; empty where there is none."""
    records = read_json_lines(RunDirectory(directory).metrics)
    training = [record for record in records if record["kind"] == "train"]
    validation = [
        number(record.get("validation_loss")) for record in records if record["kind"] == "validation"
    ]
    return Curve(
        {record["step"]: number(record["loss"]) for record in training},
        {record["step"]: number(record["gradient_norm"]) for record in training},
        validation[-1] if validation else None,
    )


def number(value: Any) -> float:
    """A number of a report; null stands for one that was not finite."""
    return math.nan if value is None else float(value)


def deviation(reference: Curve, other: Curve, options: VerifyConfig) -> Deviation:
    """Compare two curves.

    Args:
        reference: of one process; all of it is finite.
        other: of a layout.
        options: tolerances.
    """
    losses = _apart(reference.losses, other.losses)
    norms = _apart(reference.norms, other.norms)
    validation: float | None = None
    if reference.validation_loss is not None or other.validation_loss is not None:
        validation = relative(reference.validation_loss, other.validation_loss)
    beyond = [
        step
        for step in losses
        if losses[step] > options.loss_tolerance or norms[step] > options.norm_tolerance
    ]
    where = f"at step {min(beyond)}" if beyond else ""
    if not where and validation is not None and validation > options.loss_tolerance:
        where = "in validation"
    return Deviation(max(losses.values()), max(norms.values()), validation, where)


def _apart(expected: Mapping[int, float], actual: Mapping[int, float]) -> dict[int, float]:
    """Relative deviation of each step that either curve has."""
    return {step: relative(expected.get(step), actual.get(step)) for step in sorted({*expected, *actual})}


def relative(expected: float | None, actual: float | None) -> float:
    """`|expected - actual| / |expected|`; infinite where one is missing or not finite."""
    if expected is None or actual is None or not math.isfinite(expected) or not math.isfinite(actual):
        return math.inf
    if expected == actual:
        return 0.0
    return abs(expected - actual) / abs(expected) if expected else math.inf


def within(found: Deviation, roundings: Deviation, factor: float) -> bool:
    """Whether a deviation is at most so many times another one, in each of its numbers."""
    pairs = [
        (found.loss, roundings.loss),
        (found.gradient_norm, roundings.gradient_norm),
        (found.validation_loss or 0.0, roundings.validation_loss or 0.0),
    ]
    return all(one <= factor * other for one, other in pairs)
