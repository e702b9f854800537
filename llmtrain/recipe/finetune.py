"""`llmtrain finetune`: train a pretrained model for a task."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmtrain.data.examples import ExampleRows
from llmtrain.data.samples import Sample
from llmtrain.data.tokenizer import Tokenizer
from llmtrain.engine.hooks import Evaluation, Evaluator
from llmtrain.engine.step import Autocast
from llmtrain.metrics.summary import task_commands, typed_path
from llmtrain.model.assembled import Assembled
from llmtrain.model.initialise import initialise
from llmtrain.recipe.checkpointed import CARRIED, Pretrained, open_pretrained, start_from
from llmtrain.recipe.context import Context
from llmtrain.recipe.examples import examples_identity, read_examples
from llmtrain.recipe.resolve import micro_batch_size
from llmtrain.recipe.scoring import TaskData, measure, print_tables, score, write_predictions
from llmtrain.recipe.terminal import make_console
from llmtrain.recipe.training import Work, check_same_data, train
from llmtrain.schema.model import ModelConfig, TransformerConfig
from llmtrain.schema.roots import FinetuneConfig
from llmtrain.schema.task import ClassificationTask, Target, TaskConfig
from llmtrain.task.base import Examples, ScoreTable, Task, TaskKind
from llmtrain.utils import dist
from llmtrain.utils.errors import ConfigError
from llmtrain.utils.io import read_json, write_json
from llmtrain.utils.run_directory import RunDirectory

UNKNOWN_SHARE = 0.01
"""Share of unknown tokens in the examples from which there is a warning."""

FAR = 20.0
"""Mean or deviation of the numbers to learn from which there is a warning: a model starts at about 0."""


def finetune(config: FinetuneConfig, context: Context) -> int:
    """Train for the task as the config says; goes on from the newest checkpoint of the run directory.

    Returns:
        exit code: 0, or that of the signal that stopped the run.
    """
    return train(config, context, task_work)


def task_work(config: FinetuneConfig, context: Context, found: Path | None) -> Work:
    """The examples as rows, and the pretrained model; on resume both as the checkpoint has them."""
    assert config.init_from is not None
    pretrained = open_pretrained(config.init_from if found is None else str(found), context)
    identity = examples_identity(config.task, pretrained.tokenizer)
    if found is not None:
        check_same_data(found, identity)
    config.model = adapted_model(pretrained.model, config)
    length = config.train.sequence_length
    kind: TaskKind = context.builders[type(config.task)]
    config.task, training, validation = read_examples(kind, config.task, config.run.seed)
    task = kind.build(config.task, config.model.causal)
    samples = task.encode(training.items, pretrained.tokenizer, length)
    rows = ExampleRows(
        samples,
        task.batch,
        sequence_length=length,
        batch_size=config.train.batch_size,
        pad_id=pretrained.tokenizer.fill_id,
        seed=config.run.seed,
    )
    to_validate = validation_data(config, task, validation, pretrained.tokenizer)
    run = context.directory
    return Work(
        verb="finetune",
        model=config.model,
        tokenizer=pretrained.tokenizer,
        objective=task,
        rows=rows,
        mean_length=float(rows.lengths.mean()),
        first_weights=lambda model: first_weights(model, pretrained, config),
        evaluator=task_evaluator(config, task, to_validate, run),
        identity=identity,
        data_line=data_line(training, validation, rows.lengths, length),
        metric=config.task.metric if to_validate is not None else "loss",
        warnings=[
            *skipped("training", training),
            *skipped("validation", validation),
            *unknown_share(samples, pretrained.tokenizer),
            *doubts(config.task, training, validation),
        ],
        show_scores=lambda summary: show_scores(run, summary),
        next_commands=task_commands,
    )


def adapted_model(model: ModelConfig, config: FinetuneConfig) -> ModelConfig:
    """The pretrained model's config with the dropout that is asked for.

    Raises:
        ConfigError: examples may be longer than its positions.
    """
    length = config.train.sequence_length
    if length > model.max_positions:
        raise ConfigError(
            f"train.sequence_length={length} exceeds the {model.max_positions} positions of the model",
            "train.sequence_length",
            f"give train.sequence_length={model.max_positions} or less",
        )
    if config.dropout is None:
        return model
    if not isinstance(model, TransformerConfig):
        raise ConfigError(f"models of kind {model.kind} have no dropout", "dropout", "leave dropout out")
    return dataclasses.replace(model, dropout=config.dropout)


def validation_data(
    config: FinetuneConfig, task: Task, validation: Examples, tokenizer: Tokenizer
) -> TaskData | None:
    """The validation examples, encoded; None where there are none."""
    if not validation.items:
        return None
    return TaskData.make(
        task, validation.items, tokenizer, config.train.sequence_length, evaluation_batch_size(config)
    )


def evaluation_batch_size(config: FinetuneConfig) -> int:
    """Examples that one process evaluates at once."""
    return config.eval.batch_size or micro_batch_size(config.train, dist.world_size())


def first_weights(model: Assembled, pretrained: Pretrained, config: FinetuneConfig) -> list[str]:
    """Pretrained weights under a new head, or new weights everywhere; returns what the user should know."""
    initialise(model, config.run.seed)
    if config.reinitialise:
        return [f"all weights are drawn anew: of {pretrained.path.name} only shape and tokenizer are used"]
    return start_from(pretrained, model, CARRIED)


def task_evaluator(
    config: FinetuneConfig, task: Task, data: TaskData | None, run: RunDirectory
) -> Callable[[Assembled, torch.device, Autocast], Evaluator | None]:
    """Maker of the evaluation on the validation examples; the best predictions and tables are kept."""

    def make(model: Assembled, device: torch.device, autocast: Autocast) -> Evaluator | None:
        if data is None:
            return None
        size = evaluation_batch_size(config)

        def evaluate_task(stopped: Callable[[], bool]) -> Evaluation | None:
            found = measure(task, model, data, device, autocast, size, stopped)
            if found is None:
                return None
            scored = score(task, *found, data)

            def keep() -> None:
                if dist.rank() == 0:
                    write_predictions(run.predictions, scored.predictions)
                    tables = [dataclasses.asdict(table) for table in scored.tables]
                    write_json(run.scores, {"scores": scored.scores, "tables": tables})

            return Evaluation(scored.scores, scored.counts, keep)

        return evaluate_task

    return make


def show_scores(run: RunDirectory, summary: dict[str, Any]) -> None:
    """Print the tables of the best evaluation, and where its predictions are."""
    if run.scores.exists() and summary["best_step"] is not None:
        console = make_console()
        text = f"\nbest evaluation, step {summary['best_step']:,}; predictions: {typed_path(run.predictions)}"
        console.print(text, markup=False, soft_wrap=True)
        print_tables(console, [ScoreTable(**table) for table in read_json(run.scores)["tables"]])


def data_line(training: Examples, validation: Examples, lengths: np.ndarray[Any, Any], limit: int) -> str:
    """What there is to learn from; long examples may have been taken apart."""
    cut, num = int((lengths >= limit).sum()), len(training.items)
    parts = f" ({len(lengths):,} parts)" if len(lengths) != num else ""
    return (
        f"{num:,} examples{parts} to train on, {len(validation.items):,} to validate; "
        f"{lengths.mean():.1f} tokens on average, {lengths.max()} at most"
        + (f", {cut:,} fill or exceed the limit" if cut else "")
    )


def skipped(name: str, examples: Examples) -> list[str]:
    """Warnings about examples that were left out."""
    if not examples.skipped:
        return []
    first = "; ".join(examples.skipped[:3])
    return [f"{len(examples.skipped)} {name} examples have faults: {first}"]


def doubts(config: TaskConfig, training: Examples, validation: Examples) -> list[str]:
    """Warnings about what can be done, but hardly as it was meant."""
    warnings = []
    if not validation.items and config.validation_fraction:
        what = (
            f"task.validation_fraction={config.validation_fraction} of {len(training.items)} examples is none"
        )
        warnings.append(f"{what}: there will be no scores; give task.validation_paths or a greater share")
    if isinstance(config, ClassificationTask) and config.target is Target.number:
        numbers = np.array([example.label for example in training.items], np.float64)
        mean, deviation = numbers.mean(), numbers.std()
        if max(abs(mean), deviation) > FAR:
            what = f"the numbers to learn have mean {mean:,.4g} and deviation {deviation:,.4g}"
            warnings.append(
                f"{what}: a model that starts at 0 learns them slowly, scale them to about 0 and 1"
            )
    return warnings


def unknown_share(samples: Sequence[Sample], tokenizer: Tokenizer) -> list[str]:
    """A warning where the tokenizer does not know much of the examples, as with another script."""
    total = sum(len(sample.ids) for sample in samples)
    unknown = sum(int((sample.ids == tokenizer.unknown_id).sum()) for sample in samples)
    if tokenizer.unknown_id is None or unknown < UNKNOWN_SHARE * total:
        return []
    share = f"{100 * unknown / total:.1f} %"
    return [f"{share} of the tokens are unknown to the tokenizer of init_from: was it made for other text?"]
