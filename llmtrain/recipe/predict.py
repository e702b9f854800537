"""`llmtrain predict`: what a fine-tuned model says about each example of a file."""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from llmtrain.engine.step import autocast
from llmtrain.recipe.checkpointed import Checkpointed, open_checkpoint
from llmtrain.recipe.context import Context
from llmtrain.recipe.resolve import resolve_precision
from llmtrain.recipe.scoring import TaskData, measure, write_predictions
from llmtrain.schema.roots import FinetuneConfig, PredictConfig
from llmtrain.task.base import Task, TaskKind
from llmtrain.utils.device import pick_device
from llmtrain.utils.errors import ConfigError, DataError


def predict(config: PredictConfig, context: Context) -> int:
    """Write one JSON line for each example of the input."""
    assert config.init_from is not None
    assert config.input is not None
    device = pick_device(config.launch.device.value)
    loaded = open_checkpoint(config.init_from, context, device)
    task, trained = require_task(loaded)
    kind: TaskKind = context.builders[type(trained.task)]
    with input_file(config.input) as path:
        examples = kind.read(trained.task, [path], labelled=False)
    for line in examples.skipped:
        print(f"warning: left out: {line}", file=sys.stderr)
    if not examples.items:
        raise DataError("there is nothing to predict", config.input, "give a file with examples")
    length, size = trained.train.sequence_length, config.batch_size
    data = TaskData.make(task, examples.items, loaded.tokenizer, length, size)
    precision = resolve_precision(config.precision, device)
    found = measure(
        task,
        loaded.model,
        data,
        device,
        autocast(device, precision.value),
        size,
        lambda: bool(context.stop.exit_code),
    )
    if found is None:
        return context.stop.exit_code
    _, predictions = found
    if config.output is not None:
        write_predictions(Path(config.output), predictions)
    else:
        for prediction in predictions:
            print(json.dumps(prediction, ensure_ascii=False))
    return 0


def require_task(loaded: Checkpointed) -> tuple[Task, FinetuneConfig]:
    """The task of a checkpoint.

    Raises:
        ConfigError: it is none of `finetune`.
    """
    if loaded.task is None or not isinstance(loaded.config, FinetuneConfig):
        raise ConfigError(
            "the checkpoint is a language model, trained for no task",
            str(loaded.path),
            "give a run of llmtrain finetune",
        )
    return loaded.task, loaded.config


@contextlib.contextmanager
def input_file(name: str) -> Iterator[Path]:
    """The file with the examples; what comes from standard input is taken as lines of text."""
    if name != "-":
        yield Path(name).expanduser()
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stdin.txt"
        path.write_text(sys.stdin.read(), encoding="utf-8")
        yield path
