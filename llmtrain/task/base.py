"""The contract of a fine-tuning task: an objective, and the way from examples to scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from llmtrain.data.batch import Batch
from llmtrain.data.fill import Poll
from llmtrain.data.samples import PackedRow, Sample
from llmtrain.data.tokenizer import Tokenizer
from llmtrain.model.assembled import Output
from llmtrain.objective.build import Objective
from llmtrain.schema.task import TaskConfig

T = TypeVar("T")

BLOCK = 1024
"""Texts that are encoded at once: some tenths of a second for long ones."""

Prediction = dict[str, Any]
"""What the model says about one example, as plain JSON values; the first keys are the example's own."""


@dataclass
class Examples:
    """Examples as they were read.

    Attributes:
        items: in the order of the files; their type is the task's own.
        skipped: what was wrong with those that `on_error=skip` left out, each with its place.
    """

    items: list[Any]
    skipped: list[str] = field(default_factory=list)


@dataclass
class ScoreTable:
    """Something to look at after an evaluation: a confusion matrix, scores of each class."""

    title: str
    header: list[str]
    rows: list[list[str]]


def nothing_to_ask() -> None:
    """The `Poll` of whom nobody asks to stop."""


def in_blocks(encode: Callable[[list[str]], list[T]], texts: Sequence[str], poll: Poll) -> list[T]:
    """Encode texts some at a time, so that a stop need not wait for all of them.

    Args:
        encode: of a tokenizer.
        texts: any number.
        poll: asked before each block; may raise to give up.
    """
    encoded: list[T] = []
    for start in range(0, len(texts), BLOCK):
        poll()
        encoded += encode(list(texts[start : start + BLOCK]))
    return encoded


def plain(value: float) -> float:
    """A number of a prediction without the digits that fp32 does not have."""
    return float(f"{value:.7g}")


class Task(Objective, Protocol):
    """Reads examples, makes samples and batches of them, and turns what the model says into scores.

    Attributes:
        config: with labels resolved, see `resolve`.
        output: what `decode` needs of the head's scores, for each row: scores and batch -> (B, W) fp32, W the
            same in every batch. None where the loss is all there is to measure.
    """

    @property
    def config(self) -> TaskConfig: ...

    @property
    def output(self) -> Output | None: ...

    def encode(
        self, examples: Sequence[Any], tokenizer: Tokenizer, length: int, poll: Poll = nothing_to_ask
    ) -> list[Sample]:
        """Samples of at most `length` tokens; a long example may give several, in order.

        Args:
            examples: as they were read.
            tokenizer: of the model.
            length: most tokens of a sample.
            poll: called often; may raise to give up (a stop signal).
        """

    def batch(self, rows: Sequence[PackedRow], length: int, pad_id: int) -> Batch:
        """Rows (of one sample each, or none) as a batch of `length` tokens a row, with labels where known."""

    def decode(
        self, outputs: np.ndarray, samples: Sequence[Sample], examples: Sequence[Any]
    ) -> list[Prediction]:
        """One prediction for each example.

        Args:
            outputs: (samples, W), see `output`.
            samples: all of `encode`, in order.
            examples: those that were encoded.
        """

    def score(self, predictions: Sequence[Prediction], examples: Sequence[Any]) -> dict[str, float]:
        """Scores by name, between 0 and 1 where the metric is."""

    def tables(self, predictions: Sequence[Prediction], examples: Sequence[Any]) -> list[ScoreTable]:
        """What is worth looking at besides the scores."""


class TaskKind(Protocol):
    """What is done before there is a model: reading files and settling what the config left open."""

    def read(
        self, config: Any, paths: Sequence[Path], labelled: bool, poll: Poll = nothing_to_ask
    ) -> Examples:
        """Examples of files.

        Args:
            config: the task's.
            paths: they exist.
            labelled: False where labels are not needed (`predict`); a .txt file then has one text a line.
            poll: called often; may raise to give up (a stop signal).

        Raises:
            DataError: a file or an example cannot be read, with file:line.
        """

    def resolve(self, config: Any, examples: Examples) -> Any:
        """The config with what was left open (labels and their order) read off the training examples.

        Raises:
            DataError: an example has a label that the config does not list.
        """

    def build(self, config: Any, causal: bool) -> Task:
        """The task for a resolved config and a backbone that is causal or not."""
