"""Scores of a task: what training, `evaluate` and `predict` have in common."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from llmtrain.data.examples import ExampleRows
from llmtrain.data.fill import Poll
from llmtrain.data.loader import evaluation_batches
from llmtrain.data.samples import Sample
from llmtrain.data.tokenizer import Tokenizer
from llmtrain.engine.evaluate import Measured, evaluate
from llmtrain.parallel.layout import Layout
from llmtrain.task.base import Prediction, ScoreTable, Task, nothing_to_ask
from llmtrain.utils.io import atomic_write


@dataclass
class TaskData:
    """Examples of one kind, encoded.

    Attributes:
        examples: as they were read.
        samples: made of them.
        rows: the samples, by length.
    """

    examples: Sequence[Any]
    samples: list[Sample]
    rows: ExampleRows

    @classmethod
    def make(
        cls,
        task: Task,
        examples: Sequence[Any],
        tokenizer: Tokenizer,
        length: int,
        batch_size: int,
        poll: Poll = nothing_to_ask,
        multiple: int = 1,
    ) -> TaskData:
        """Encode examples to be looked at in order of length.

        Args:
            task: knows how.
            examples: as they were read.
            tokenizer: of the model.
            length: longest row.
            batch_size: rows looked at together.
            poll: may raise to give up.
            multiple: see `ExampleRows`.
        """
        samples = task.encode(examples, tokenizer, length, poll)
        rows = ExampleRows(
            samples,
            task.batch,
            sequence_length=length,
            batch_size=batch_size,
            pad_id=tokenizer.fill_id,
            seed=0,
            shuffle=False,
            multiple=multiple,
        )
        return cls(examples, samples, rows)


@dataclass
class Scored:
    """What a model says about examples, and how good that is."""

    predictions: list[Prediction]
    scores: dict[str, float]
    counts: dict[str, float]
    tables: list[ScoreTable]


def measure(
    task: Task,
    layout: Layout,
    data: TaskData,
    batch_size: int,
    stopped: Callable[[], bool],
) -> tuple[Measured, list[Prediction]] | None:
    """Loss and predictions (none where the task keeps no output). Collective; every process gets all
    predictions. None where it was stopped."""
    mesh = layout.mesh
    batches = evaluation_batches(data.rows, batch_size, mesh.data_rank, mesh.degrees.data)
    measured = evaluate(layout, task, batches, stopped, task.output)
    if measured is None:
        return None
    if measured.outputs is None:
        return measured, []
    outputs = measured.outputs[: len(data.samples)]
    outputs[data.rows.order(0)] = outputs.copy()
    return measured, task.decode(outputs, data.samples, data.examples)


def score(task: Task, measured: Measured, predictions: list[Prediction], data: TaskData) -> Scored:
    """Scores of predictions, the loss first."""
    scores = {"loss": measured.stats["loss"], **task.score(predictions, data.examples)}
    if task.output is None:  # it predicts tokens, and is measured together with the loss
        scores |= measured.stats | {"perplexity": math.exp(min(measured.stats["loss"], 700.0))}
    return Scored(predictions, scores, measured.counts, task.tables(predictions, data.examples))


def write_predictions(path: Path, predictions: Sequence[Prediction]) -> None:
    """One JSON line for each example."""
    atomic_write(path, "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in predictions))


def print_tables(console: Console, tables: Sequence[ScoreTable]) -> None:
    """Tables under their titles; numbers to the right."""
    for one in tables:
        table = Table(box=None)
        for number, name in enumerate(one.header):
            table.add_column(name, justify="right" if number else "left")
        for row in one.rows:
            table.add_row(*row)
        console.print(f"\n{one.title}", style="bold", markup=False, soft_wrap=True)
        console.print(table)
