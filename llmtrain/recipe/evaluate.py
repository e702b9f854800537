"""`llmtrain evaluate`: perplexity and bits per byte of a checkpoint on a text."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Iterable, Iterator

from rich.table import Table

from llmtrain.data.batch import IGNORE, Batch
from llmtrain.data.loader import evaluation_batches
from llmtrain.data.rows import StreamRows
from llmtrain.data.store import View
from llmtrain.data.tokenizer import Tokenizer
from llmtrain.engine.evaluate import evaluate
from llmtrain.engine.step import autocast
from llmtrain.objective.build import build_objective
from llmtrain.recipe.checkpointed import Checkpointed, open_checkpoint
from llmtrain.recipe.context import Context
from llmtrain.recipe.data import open_data
from llmtrain.recipe.resolve import resolve_precision
from llmtrain.recipe.terminal import make_console
from llmtrain.schema.groups import DataConfig
from llmtrain.schema.roots import EvaluateConfig
from llmtrain.utils.device import pick_device
from llmtrain.utils.errors import ConfigError, DataError


def evaluate_checkpoint(config: EvaluateConfig, context: Context) -> int:
    """Print loss (nats per token), perplexity and bits per byte.

    The text is cut into rows that do not overlap; each token is predicted once, from what stands before
    it in its row, but for those with nothing before them (the first; with isolated documents the first
    of each). Longer rows therefore give lower numbers. Bytes are those of the predicted tokens.
    """
    device = pick_device(config.launch.device.value)
    assert config.init_from is not None
    loaded = open_checkpoint(config.init_from, context, device)
    length = row_length(config, loaded)
    data = data_to_evaluate(config, loaded)
    rows = StreamRows(
        text_to_evaluate(config, context, loaded, data),
        sequence_length=length,
        seed=loaded.config.run.seed,
        shuffle=False,
    )
    objective = build_objective(loaded.config.objective, data, context.builders)
    precision = resolve_precision(config.precision, device)
    predicted = Predicted(loaded.tokenizer)
    result = evaluate(
        loaded.model,
        objective,
        predicted.watch(evaluation_batches(rows, objective.collate, config.batch_size, 0, 1)),
        device,
        autocast(device, precision.value),
        lambda: bool(context.stop.exit_code),
    )
    if result is None:
        return context.stop.exit_code
    loss = result[0]["loss"]
    report = {
        "checkpoint": str(loaded.path),
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "bits_per_byte": loss * predicted.tokens / math.log(2) / max(1, predicted.bytes),
        "tokens": predicted.tokens,
        "bytes": predicted.bytes,
        "sequence_length": length,
    }
    print_result(report)
    return 0


class Predicted:
    """Counts the labels of batches that pass by, and the bytes of text that they stand for."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.tokens = 0
        self.bytes = 0

    def watch(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The same batches."""
        for batch in batches:
            labels = batch.labels[batch.labels != IGNORE].numpy()
            self.tokens += len(labels)
            self.bytes += self.tokenizer.count_bytes(labels)
            yield batch


def row_length(config: EvaluateConfig, loaded: Checkpointed) -> int:
    """Tokens in a row: as asked for, else as in training.

    Raises:
        ConfigError: the model cannot take rows of that length.
    """
    length, longest = config.sequence_length, loaded.config.model.max_positions
    if length is not None and length > longest:
        raise ConfigError(
            f"rows of {length} tokens are longer than the {longest} positions of the model",
            "sequence_length",
            f"give at most {longest}",
        )
    return length or loaded.config.train.sequence_length


def data_to_evaluate(config: EvaluateConfig, loaded: Checkpointed) -> DataConfig:
    """The given data, nothing held out, with documents isolated as in training; or the run's own data."""
    trained_on = loaded.config.data
    if config.data is None:
        return trained_on
    isolate = config.data.isolate_documents or trained_on.isolate_documents
    return dataclasses.replace(config.data, validation_fraction=0.0, isolate_documents=isolate)


def text_to_evaluate(
    config: EvaluateConfig, context: Context, loaded: Checkpointed, data: DataConfig
) -> View:
    """Tokens of the given data, all of them, or of the run's own validation text.

    Raises:
        DataError: the run has no validation text.
    """
    prepared = open_data(data, loaded.tokenizer, loaded.config.run.seed, context)
    for warning in prepared.report.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    view = prepared.train if config.data is not None else prepared.validation
    if view is None:
        raise DataError(
            "the run has no validation text", str(loaded.path), "give a text: data=text data.paths=[file.txt]"
        )
    return view


def print_result(result: dict[str, object]) -> None:
    """A table on a terminal, one JSON line elsewhere."""
    console = make_console()
    if not console.is_terminal:
        print(json.dumps(result))
        return
    table = Table(box=None, show_header=False)
    for name, value in result.items():
        table.add_row(name.replace("_", " "), f"{value:,.4f}" if isinstance(value, float) else str(value))
    console.print(table)
