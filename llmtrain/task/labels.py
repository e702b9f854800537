"""Labelled texts: what a row of a file says, as an example, and what labels there are."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmtrain.data.batch import IGNORE
from llmtrain.data.corpus import shorten
from llmtrain.schema.task import ClassificationTask, Target
from llmtrain.task.files import REPAIR, Row, text_of
from llmtrain.utils.errors import DataError

LISTED = 20
"""Labels that a message lists at most."""

NUDGE = 1e-3
"""Standard deviations by which a number is moved that would be taken for IGNORE, 100 of them off."""


@dataclass(frozen=True)
class Example:
    """A text, or a pair of texts, and what is known of it.

    Attributes:
        where: `file:line`.
        text: the first text.
        pair: the second one.
        label: a label, a list of labels, or a number, as the target says; None where it is not known.
    """

    where: str
    text: str
    pair: str | None = None
    label: str | list[str] | float | None = None

    @property
    def labels(self) -> list[str]:
        """The labels, of which there may be none, one or several; none for a number."""
        if isinstance(self.label, str):
            return [self.label]
        return self.label if isinstance(self.label, list) else []


@dataclass(frozen=True)
class Standard:
    """Numbers as a model learns them: counted from their mean, in units of their standard deviation.

    A head whose first outputs are about 0 then starts at the mean, whatever the unit of the numbers.
    """

    mean: float
    scale: float

    @classmethod
    def measure(cls, numbers: Sequence[float]) -> Standard:
        """Mean and standard deviation; of numbers that are all the same, but for rounding, the scale is 1.

        Raises:
            DataError: the numbers are too large for that.
        """
        with np.errstate(all="ignore"):
            mean, scale = float(np.mean(numbers)), float(np.std(numbers))
        largest = max(map(abs, numbers))
        if not math.isfinite(scale):
            what = f"the numbers to learn are too large: up to {largest:.3g}"
            raise DataError(what, "task.paths", "write them in a larger unit")
        return cls(mean, scale if scale > 1e-12 * largest else 1.0)

    def of(self, number: float) -> float:
        """A number as it is learned."""
        value = (number - self.mean) / self.scale
        return value + NUDGE if abs(value - IGNORE) < NUDGE else value

    def back(self, value: float) -> float:
        """What a model says, in the unit of the numbers, without the digits that fp32 does not have."""
        return round(self.mean + self.scale * value, 6 - math.floor(math.log10(self.scale)))


def example_of(row: Row, config: ClassificationTask, labelled: bool) -> Example:
    """The example of a row.

    Raises:
        DataError: a text or the label is missing or of a wrong kind.
    """
    texts = {"text_column": "text", "pair_column": "second text"}
    values = {
        setting: text_of(row.values[setting], row.where, what)
        for setting, what in texts.items()
        if setting in row.values
    }
    if not labelled:
        return Example(row.where, values["text_column"], values.get("pair_column"))
    for setting, value in values.items():
        if not value.strip():
            raise DataError(f"the {texts[setting]} is empty", row.where, REPAIR)
    value = row.values["label_column"]
    label: str | list[str] | float
    if config.target is Target.number:
        label = _number(value, row.where)
    elif config.target is Target.labels:
        items = value.split(config.separator) if isinstance(value, str) else value
        if not isinstance(items, list):
            raise DataError(f"this is no list of labels: {shorten(value)}", row.where, REPAIR)
        named = [item for item in items if not isinstance(item, str) or item.strip()]
        label = list(dict.fromkeys(_label(item, row.where) for item in named))
    else:
        label = _label(value, row.where)
    return Example(row.where, values["text_column"], values.get("pair_column"), label)


def _label(value: Any, where: str) -> str:
    """A label as a text: JSON's true is `true`, 1 and 1.0 are `1`.

    Raises:
        DataError: it is no label.
    """
    if isinstance(value, list):
        raise DataError(f"the label is a list: {shorten(value)}", where, "set task.target=labels")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value)) if value == int(value) else str(value)
    if isinstance(value, int):
        return str(value)
    text = text_of(value, where, "label").strip()
    if not text:
        raise DataError("the label is empty", where, REPAIR)
    return text


def _number(value: Any, where: str) -> float:
    """A number to predict.

    Raises:
        DataError: it is no finite number.
    """
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"the label is not a number: {shorten(value)}", where, REPAIR)
    return number


def check_known(example: Example, labels: Sequence[str], known: Container[str]) -> None:
    """Whether an example has known labels only.

    Raises:
        DataError: names the first unknown one and those that are known.
    """
    for label in example.labels:
        if label not in known:
            more = ", ..." if len(labels) > LISTED else ""
            fix = f"known: {', '.join(labels[:LISTED])}{more}; {REPAIR}, or add it to task.labels"
            raise DataError(f"the label {label!r} is not known", example.where, fix)


def in_order(labels: Iterable[str]) -> list[str]:
    """Labels sorted, by their value where all are numbers."""
    labels = sorted(labels)
    try:
        values = [float(label) for label in labels]
    except ValueError:
        return labels
    return sorted(labels, key=float) if all(map(math.isfinite, values)) else labels


def balanced(counts: Sequence[int]) -> list[float]:
    """Weights in inverse proportion to counts, with mean 1; what never occurs weighs 1."""
    inverse = [1 / count for count in counts if count]
    return [len(inverse) / sum(inverse) / count if count else 1.0 for count in counts]
