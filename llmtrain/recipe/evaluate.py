"""`llmtrain evaluate`: perplexity and bits per byte of a checkpoint on a text."""

from __future__ import annotations

import dataclasses
import json
import math

from rich.console import Console
from rich.table import Table

from llmtrain.data.loader import evaluation_batches
from llmtrain.data.rows import StreamRows
from llmtrain.data.store import View
from llmtrain.engine.evaluate import evaluate
from llmtrain.engine.step import autocast
from llmtrain.objective.build import OBJECTIVES, build_objective
from llmtrain.recipe.checkpointed import Checkpointed, open_checkpoint
from llmtrain.recipe.context import Context
from llmtrain.recipe.data import open_data
from llmtrain.recipe.resolve import resolve_precision
from llmtrain.schema.roots import EvaluateConfig
from llmtrain.utils.device import pick_device
from llmtrain.utils.errors import DataError


def evaluate_checkpoint(config: EvaluateConfig, context: Context) -> int:
    """Print loss (nats per token), perplexity and bits per byte.

    The text is cut into rows that do not overlap; each token but the first is predicted once, from what
    stands before it in its row. Longer rows therefore give lower numbers.
    """
    device = pick_device(config.launch.device.value)
    assert config.init_from is not None
    loaded = open_checkpoint(config.init_from, context, device)
    view = text_to_evaluate(config, context, loaded)
    length = config.sequence_length or loaded.config.train.sequence_length
    data = config.data or loaded.config.data
    rows = StreamRows(
        view,
        sequence_length=length,
        seed=loaded.config.run.seed,
        isolate_documents=data.isolate_documents,
        shuffle=False,
    )
    objective = build_objective(loaded.config.objective, data, {**OBJECTIVES, **context.builders})
    precision = resolve_precision(config.precision, device)
    result = evaluate(
        loaded.model,
        objective,
        evaluation_batches(rows, objective.collate, config.batch_size, 0, 1),
        device,
        autocast(device, precision.value),
        lambda: bool(context.stop.exit_code),
    )
    if result is None:
        return context.stop.exit_code
    stats, counts = result
    loss, tokens = stats["loss"], int(counts["tokens"])
    report = {
        "checkpoint": str(loaded.path),
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "bits_per_byte": loss * tokens / math.log(2) / view.num_bytes,
        "tokens": tokens,
        "bytes": view.num_bytes,
        "sequence_length": length,
    }
    print_result(report)
    return 0


def text_to_evaluate(config: EvaluateConfig, context: Context, loaded: Checkpointed) -> View:
    """Tokens of the given data, all of them, or of the run's own validation text."""
    data = config.data
    if data is not None:
        data = dataclasses.replace(data, validation_fraction=0.0)
    prepared = open_data(data or loaded.config.data, loaded.tokenizer, loaded.config.run.seed, context)
    view = prepared.train if data is not None else prepared.validation
    if view is None:
        raise DataError(
            "the run has no validation text", str(loaded.path), "give a text: data=text data.paths=[file.txt]"
        )
    return view


def print_result(result: dict[str, object]) -> None:
    """A table on a terminal, one JSON line elsewhere."""
    console = Console()
    if not console.is_terminal:
        print(json.dumps(result))
        return
    table = Table(box=None, show_header=False)
    for name, value in result.items():
        table.add_row(name.replace("_", " "), f"{value:,.4f}" if isinstance(value, float) else str(value))
    console.print(table)
