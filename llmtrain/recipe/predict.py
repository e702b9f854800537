"""`llmtrain predict`: what a fine-tuned model says about each example of a file."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from llmtrain.data.lines import require_file
from llmtrain.data.tokenizer import Tokenizer
from llmtrain.metrics.summary import typed_path
from llmtrain.parallel.layout import Replicated
from llmtrain.parallel.mesh import Mesh
from llmtrain.recipe.checkpointed import Checkpointed, open_checkpoint, tell
from llmtrain.recipe.context import Context
from llmtrain.recipe.examples import cut_texts, unknown_share
from llmtrain.recipe.resolve import resolve_precision
from llmtrain.recipe.scoring import TaskData, measure, write_predictions
from llmtrain.schema.load import dump
from llmtrain.schema.parallel import Degrees
from llmtrain.schema.roots import FinetuneConfig, PredictConfig
from llmtrain.schema.task import QuestionAnsweringTask, TaskConfig
from llmtrain.task.base import Task, TaskKind
from llmtrain.utils.device import pick_device
from llmtrain.utils.errors import ConfigError, DataError

OTHER_TRAINING = re.compile(
    r",? or (set )?task\.on_error=skip( to learn nothing from it)?|; task\.on_error=skip[^;]*"
    r"|,? or add it to task\.labels|, or set task\.format=.*"
)
"""Parts of an advice that only help before a training."""


def predict(config: PredictConfig, context: Context) -> int:
    """Write one JSON line for each example of the input."""
    assert config.init_from is not None
    assert config.input is not None
    device = pick_device(config.launch.device.value)
    loaded = open_checkpoint(config.init_from, context, device)
    tell(loaded)
    task, trained = require_task(loaded)
    if task.output is None:
        raise ConfigError(
            "the model answers in words, one after the other",
            str(loaded.path),
            "llmtrain generate prompts=FILE chat=true output=FILE answers the prompts of a file",
        )
    output = output_file(config.output)
    kind: TaskKind = context.builders[type(trained.task)]
    questions = isinstance(trained.task, QuestionAnsweringTask)
    with input_file(config.input, ".jsonl" if questions else ".txt") as path, as_trained(trained.task):
        examples = kind.read(trained.task, [path], labelled=False, poll=context.stop.poll)
    for line in examples.skipped:
        print(f"warning: left out: {line}", file=sys.stderr)
    if not examples.items:
        raise DataError("there is nothing to predict", config.input, "give a file with examples")
    length, size = trained.train.sequence_length, config.batch_size
    data = TaskData.make(task, examples.items, loaded.tokenizer, length, size, context.stop.poll)
    warn(trained.task, data, loaded.tokenizer)
    precision = resolve_precision(config.precision, device)
    found = measure(
        task,
        Replicated(loaded.model, Mesh.here(Degrees(), device), precision.value),
        data,
        size,
        lambda: bool(context.stop.exit_code),
    )
    if found is None:
        return context.stop.exit_code
    _, predictions = found
    if output is not None:
        write_predictions(output, predictions)
        print(f"{len(predictions):,} predictions in {typed_path(output)}", file=sys.stderr)
    else:
        for prediction in predictions:
            print(json.dumps(prediction, ensure_ascii=False))
    return 0


def warn(config: TaskConfig, data: TaskData, tokenizer: Tokenizer) -> None:
    """Say on standard error what of the examples the model does not get to see."""
    for line in [*cut_texts(config, data.samples), *unknown_share(data.samples, tokenizer)]:
        print(f"warning: {line}", file=sys.stderr)


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


def output_file(name: str | None) -> Path | None:
    """The file to write at the end.

    Raises:
        ConfigError: it cannot be there; better known before the work than after it.
    """
    if name is None:
        return None
    path = Path(name)
    if path.is_dir() or not path.parent.is_dir():
        what = f"{path} is a folder" if path.is_dir() else f"there is no folder {path.parent}"
        raise ConfigError(what, "output", "give a file in a folder that is there")
    return path


@contextlib.contextmanager
def input_file(name: str, ending: str = ".txt") -> Iterator[Path]:
    """The file with the examples; what comes from standard input is taken to be of the kind of `ending`.

    Raises:
        DataError: there is no such file.
    """
    if name != "-":
        yield require_file(name, "input")
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"stdin{ending}"
        path.write_bytes(sys.stdin.buffer.read())
        try:
            yield path
        except DataError as error:
            error.problems = [
                dataclasses.replace(one, where=one.where.replace(str(path), "standard input"))
                for one in error.problems
            ]
            raise


@contextlib.contextmanager
def as_trained(task: TaskConfig) -> Iterator[None]:
    """What a fault in a file says to do: the settings of the run hold, advice to change them is left out."""
    try:
        yield
    except DataError as error:
        error.problems = [
            dataclasses.replace(problem, fix=without_settings(problem.fix, task))
            for problem in error.problems
        ]
        raise


def without_settings(fix: str, task: TaskConfig) -> str:
    """Advice for training, turned into advice for a run whose settings stand."""
    fix = OTHER_TRAINING.sub("", fix)
    settings = dump(task)
    keys = [key for key in dict.fromkeys(re.findall(r"task\.(\w+)", fix)) if key in settings]
    if not keys:
        return fix
    told = ", ".join(f"{key}={json.dumps(settings[key], ensure_ascii=False)}" for key in keys)
    return f"give a file laid out as those of the training: {told}"
