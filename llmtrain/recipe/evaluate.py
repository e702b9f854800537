"""`llmtrain evaluate`: scores of a checkpoint, of a language model on a text, of a task on its files."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Iterable, Iterator

import torch
from rich.table import Table

from llmtrain.checkpoint.read import read_state
from llmtrain.data.batch import IGNORE, Batch
from llmtrain.data.fill import Poll
from llmtrain.data.lines import require_file
from llmtrain.data.loader import evaluation_batches
from llmtrain.data.store import View
from llmtrain.data.tokenizer import Tokenizer
from llmtrain.engine.evaluate import Measured, evaluate, merge
from llmtrain.metrics.summary import typed_path
from llmtrain.objective.build import build_objective
from llmtrain.parallel.layout import Replicated
from llmtrain.parallel.mesh import Mesh
from llmtrain.recipe.checkpointed import Checkpointed, open_checkpoint, tell
from llmtrain.recipe.context import Context
from llmtrain.recipe.data import open_data, row_notes
from llmtrain.recipe.examples import examples_identity, read_examples
from llmtrain.recipe.predict import as_trained, output_file, require_task, warn
from llmtrain.recipe.resolve import resolve_precision
from llmtrain.recipe.scoring import TaskData, measure, print_tables, score, write_predictions
from llmtrain.recipe.terminal import make_console
from llmtrain.schema.data import DataConfig, MixtureData
from llmtrain.schema.parallel import Degrees
from llmtrain.schema.roots import EvaluateConfig, FinetuneConfig, PretrainConfig
from llmtrain.task.base import Examples, TaskKind
from llmtrain.task.files import task_paths
from llmtrain.utils.device import pick_device
from llmtrain.utils.errors import ConfigError, DataError


def evaluate_checkpoint(config: EvaluateConfig, context: Context) -> int:
    """Print the scores of a checkpoint: of a task on its files, or of a language model on a text."""
    device = pick_device(config.launch.device.value)
    assert config.init_from is not None
    loaded = open_checkpoint(config.init_from, context, device)
    tell(loaded)
    if loaded.task is None:
        return evaluate_text(config, context, loaded, device)
    return evaluate_task(config, context, loaded, device)


def evaluate_task(
    config: EvaluateConfig, context: Context, loaded: Checkpointed, device: torch.device
) -> int:
    """Print the scores and tables of a fine-tuned model on files, or on the run's validation examples."""
    task, trained = require_task(loaded)
    if config.data is not None:
        raise ConfigError(
            "a fine-tuned model is evaluated on examples, not on a text", "data", "give paths=[FILE]"
        )
    if task.output is None and config.output is not None:
        fix = "leave output out; llmtrain generate prompts=FILE chat=true writes answers"
        raise ConfigError("there are no predictions: answers are scored as they stand", "output", fix)
    output = output_file(config.output)
    kind: TaskKind = context.builders[type(trained.task)]
    if config.paths:
        paths = [require_file(path, "paths") for path in config.paths]
        with as_trained(trained.task):
            examples = kind.read(trained.task, paths, labelled=True, poll=context.stop.poll)
    else:
        examples = own_examples(kind, trained, loaded, context.stop.poll)
    if not examples.items:
        raise DataError("there are no examples to evaluate on", str(loaded.path), "give paths=[FILE]")
    for line in examples.skipped:
        print(f"warning: {line}", file=sys.stderr)
    length = row_length(config, loaded)
    poll = context.stop.poll
    data = TaskData.make(task, examples.items, loaded.tokenizer, length, config.batch_size, poll)
    warn(trained.task, data, loaded.tokenizer)
    precision = resolve_precision(config.precision, device)
    found = measure(
        task,
        Replicated(loaded.model, Mesh.here(Degrees(), device), precision.value),
        data,
        config.batch_size,
        lambda: bool(context.stop.exit_code),
    )
    if found is None:
        return context.stop.exit_code
    scored = score(task, *found, data)
    if output is not None:
        write_predictions(output, scored.predictions)
        print(f"{len(scored.predictions):,} predictions in {typed_path(output)}", file=sys.stderr)
    print_result({"checkpoint": str(loaded.path), **scored.scores, "examples": len(examples.items)})
    console = make_console()
    if console.is_terminal:
        print_tables(console, scored.tables)
    return 0


def own_examples(kind: TaskKind, trained: FinetuneConfig, loaded: Checkpointed, poll: Poll) -> Examples:
    """The validation examples of a run: its files, or what it held out of the training examples.

    Raises:
        ConfigError: the training files have changed, so that others would be held out now.
    """
    task, key = trained.task, "task.validation_paths"
    if task.validation_paths:
        return kind.read(task, task_paths(task, task.validation_paths, key), labelled=True, poll=poll)
    now, then = examples_identity(task, loaded.tokenizer), read_state(loaded.path)["data"]
    if now != then:
        raise ConfigError(
            "the training files have changed: which of their examples were held out is not known any more",
            str(loaded.path),
            "give examples that were not trained on: paths=[FILE]",
        )
    return read_examples(kind, task, trained.run.seed, poll)[2]


def evaluate_text(
    config: EvaluateConfig, context: Context, loaded: Checkpointed, device: torch.device
) -> int:
    """Print the loss (nats per label) and what else the objective counts.

    For an autoregressive model also perplexity and bits per byte: the text is cut into rows that do not
    overlap; each token is predicted once, from what stands before it in its row, but for those with
    nothing before them (the first; with isolated documents the first of each). Longer rows therefore give
    lower numbers. Bytes are those of the predicted tokens.
    """
    trained = loaded.config
    assert isinstance(trained, PretrainConfig)
    if config.paths or config.output:
        raise ConfigError(
            "a language model is evaluated on a text, not on examples",
            "paths" if config.paths else "output",
            "give data=text data.paths=[FILE], or init_from=RUN of llmtrain finetune",
        )
    length = row_length(config, loaded)
    data = data_to_evaluate(config, trained)
    objective = build_objective(trained.objective, data, context.builders)
    texts = {
        name: objective.rows(view, sequence_length=length, seed=trained.run.seed, shuffle=False)
        for name, view in texts_to_evaluate(config, context, loaded, data).items()
    }
    for note in row_notes(texts):
        print(f"warning: {note}", file=sys.stderr)
    precision = resolve_precision(config.precision, device)
    predicted = Predicted(loaded.tokenizer)
    layout = Replicated(loaded.model, Mesh.here(Degrees(), device), precision.value)
    parts: dict[str, Measured] = {}
    for name, rows in texts.items():
        batches = predicted.watch(evaluation_batches(rows, config.batch_size, 0, 1))
        measured = evaluate(layout, objective, batches, lambda: bool(context.stop.exit_code))
        if measured is None:
            return context.stop.exit_code
        parts[name] = measured
    stats, counts = merge(objective, parts)
    loss = stats["loss"]
    report: dict[str, object] = {"checkpoint": str(loaded.path), **stats}
    if trained.objective.causal:
        report["perplexity"] = math.exp(min(loss, 700.0))
        report["bits_per_byte"] = loss * predicted.tokens / math.log(2) / max(1, predicted.bytes)
        report |= {"tokens": predicted.tokens, "bytes": predicted.bytes}
    else:
        report |= {name: int(count) for name, count in counts.items()}
    print_result({**report, "sequence_length": length})
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
            assert batch.labels is not None
            labels = batch.labels[batch.labels != IGNORE].numpy()
            self.tokens += len(labels)
            self.bytes += self.tokenizer.count_bytes(labels)
            yield batch


def row_length(config: EvaluateConfig, loaded: Checkpointed) -> int:
    """Tokens in a row: as asked for, else as in training.

    Raises:
        ConfigError: the model cannot take rows of that length.
    """
    length, longest = config.sequence_length, loaded.model_config.max_positions
    if length is not None and length > longest:
        raise ConfigError(
            f"rows of {length} tokens are longer than the {longest} positions of the model",
            "sequence_length",
            f"give at most {longest}",
        )
    return length or loaded.config.train.sequence_length


def data_to_evaluate(config: EvaluateConfig, trained: PretrainConfig) -> DataConfig:
    """The given data, nothing held out, with documents isolated as in training; or the run's own data."""
    trained_on = trained.data
    if config.data is None and trained.extra.get("imported"):
        what = "the model was made elsewhere, and there is no text with it"
        raise ConfigError(what, "data", "give a text: data=text data.paths=[file.txt]")
    if config.data is None:
        return trained_on
    isolate = config.data.isolate_documents or trained_on.isolate_documents
    given = dataclasses.replace(config.data, validation_fraction=0.0, isolate_documents=isolate)
    if isinstance(given, MixtureData):
        whole = {
            name: dataclasses.replace(source, validation_fraction=0.0)
            for name, source in given.sources.items()
        }
        given = dataclasses.replace(given, sources=whole)
    return given


def texts_to_evaluate(
    config: EvaluateConfig, context: Context, loaded: Checkpointed, data: DataConfig
) -> dict[str, View]:
    """Tokens of the given data, all of them, or of the run's own validation texts; by name.

    Raises:
        DataError: the run has no validation text.
    """
    prepared = open_data(data, loaded.tokenizer, loaded.config.run.seed, context)
    for warning in prepared.report.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    views = prepared.trains if config.data is not None else prepared.validations
    if not views:
        raise DataError(
            "the run has no validation text", str(loaded.path), "give a text: data=text data.paths=[file.txt]"
        )
    return views


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
