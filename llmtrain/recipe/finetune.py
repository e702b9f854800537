"""`llmtrain finetune`: train a pretrained model for a task."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np

from llmtrain.data.examples import ExampleRows, PackedExamples
from llmtrain.data.fill import Poll
from llmtrain.data.samples import Sample
from llmtrain.data.tokenizer import Tokenizer
from llmtrain.engine.hooks import Evaluation, Evaluator
from llmtrain.metrics.summary import answer_commands, task_commands, typed_path
from llmtrain.model.assembled import Assembled
from llmtrain.model.initialise import initialise
from llmtrain.parallel.layout import Layout
from llmtrain.recipe.answers import show_answers
from llmtrain.recipe.checkpointed import CARRIED, Pretrained, open_base, open_pretrained, start_from
from llmtrain.recipe.context import Context
from llmtrain.recipe.data import stopped_together
from llmtrain.recipe.examples import cut_texts, examples_identity, left_out, read_examples, unknown_share
from llmtrain.recipe.resolve import evaluation_batch_size, resolve_layout
from llmtrain.recipe.scoring import TaskData, measure, print_tables, score, write_predictions
from llmtrain.recipe.terminal import make_console
from llmtrain.recipe.training import Work, check_same_data, train
from llmtrain.schema.model import ModelConfig, TransformerConfig
from llmtrain.schema.parallel import Degrees
from llmtrain.schema.roots import FinetuneConfig
from llmtrain.schema.task import GenerationTask, TaskConfig
from llmtrain.task.base import Examples, Prediction, ScoreTable, Task, TaskKind
from llmtrain.utils import dist
from llmtrain.utils.errors import ConfigError
from llmtrain.utils.io import read_json, read_json_lines, write_json
from llmtrain.utils.run_directory import RunDirectory


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
    base = open_base(config, pretrained, found, context, CARRIED)
    config.model = adapted_model(pretrained.model, config)
    length = config.train.sequence_length
    kind: TaskKind = context.builders[type(config.task)]
    poll = context.stop.poll
    degrees = resolve_layout(config, dist.world_size(), config.model, length)
    with stopped_together(context):
        config.task, training, validation = read_examples(kind, config.task, config.run.seed, poll)
        task = kind.build(config.task, config.model.causal)
        samples = task.encode(training.items, pretrained.tokenizer, length, poll)
        to_validate = validation_data(config, degrees, task, validation, pretrained.tokenizer, poll)
    rows = training_rows(config, task, samples, degrees, pretrained.tokenizer.fill_id)
    run = context.directory
    return Work(
        verb="finetune",
        model=config.model,
        tokenizer=pretrained.tokenizer,
        objective=task,
        rows=rows,
        mean_length=rows.mean_length,
        first_weights=lambda model, names: first_weights(model, names, pretrained, config),
        evaluator=task_evaluator(config, task, to_validate, run),
        identity=identity,
        data_line=data_line(config.task, training, validation, samples),
        metric=config.task.metric if to_validate is not None else "loss",
        warnings=[
            *skipped("training", training),
            *skipped("validation", validation),
            *(cut_texts(config.task, to_validate.samples, "validation ") if to_validate else []),
            *left_out(config.task, training, samples),
            *(left_out(config.task, validation, to_validate.samples, "validation ") if to_validate else []),
            *unknown_share(samples, pretrained.tokenizer),
            *doubts(config.task, training, validation),
        ],
        show_scores=lambda summary: show_results(config, context, validation, summary),
        next_commands=answer_commands if task.output is None else task_commands,
        base=base,
    )


def training_rows(
    config: FinetuneConfig, task: Task, samples: Sequence[Sample], degrees: Degrees, pad_id: int
) -> ExampleRows | PackedExamples:
    """The examples as rows: one in each, or as many as there is room for."""
    length, seed = config.train.sequence_length, config.run.seed
    if config.task.packs:
        return PackedExamples(samples, task.batch, sequence_length=length, pad_id=pad_id, seed=seed)
    return ExampleRows(
        samples,
        task.batch,
        sequence_length=length,
        batch_size=config.train.batch_size,
        pad_id=pad_id,
        seed=seed,
        multiple=degrees.tp,
        one_length=degrees.pp > 1,
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
    config: FinetuneConfig,
    degrees: Degrees,
    task: Task,
    validation: Examples,
    tokenizer: Tokenizer,
    poll: Poll,
) -> TaskData | None:
    """The validation examples, encoded; None where there are none."""
    if not validation.items:
        return None
    length = config.train.sequence_length
    size = evaluation_batch_size(config, degrees)
    return TaskData.make(task, validation.items, tokenizer, length, size, poll, degrees.tp * degrees.cp)


def first_weights(
    model: Assembled, names: Set[str], pretrained: Pretrained, config: FinetuneConfig
) -> list[str]:
    """Pretrained weights under a new head, or new weights everywhere; returns what the user should know."""
    initialise(model, config.run.seed)
    if config.reinitialise:
        return [f"all weights are drawn anew: of {pretrained.path.name} only shape and tokenizer are used"]
    return start_from(pretrained, model, names, CARRIED)


def task_evaluator(
    config: FinetuneConfig, task: Task, data: TaskData | None, run: RunDirectory
) -> Callable[[Layout], Evaluator | None]:
    """Maker of the evaluation on the validation examples; the best predictions and tables are kept."""

    def make(layout: Layout) -> Evaluator | None:
        if data is None:
            return None
        size = evaluation_batch_size(config, layout.mesh.degrees)

        def evaluate_task(stopped: Callable[[], bool]) -> Evaluation | None:
            found = measure(task, layout, data, size, stopped)
            if found is None:
                return None
            scored = score(task, *found, data)

            def keep() -> None:
                if dist.rank() == 0:
                    if scored.predictions:
                        write_predictions(run.predictions, scored.predictions)
                    tables = [dataclasses.asdict(table) for table in scored.tables]
                    write_json(run.scores, {"scores": scored.scores, "tables": tables})

            return Evaluation(scored.scores, scored.counts, keep)

        return evaluate_task

    return make


def show_results(
    config: FinetuneConfig, context: Context, validation: Examples, summary: dict[str, Any]
) -> None:
    """Print what was reached: scores, or some answers."""
    show_scores(context.directory, summary)
    if isinstance(config.task, GenerationTask) and summary["finished"]:
        show_answers(config.task, validation.items, config.launch.device.value, context)


def show_scores(run: RunDirectory, summary: dict[str, Any]) -> None:
    """Print the tables of the best evaluation, where its predictions are, and what is odd about them."""
    if run.scores.exists() and summary["best_step"] is not None:
        console = make_console()
        where = f"; predictions: {typed_path(run.predictions)}" if run.predictions.exists() else ""
        text = f"\nbest evaluation, step {summary['best_step']:,}{where}"
        console.print(text, markup=False, soft_wrap=True)
        print_tables(console, [ScoreTable(**table) for table in read_json(run.scores)["tables"]])
        if not run.predictions.exists():
            return
        if answer := only_answer(read_json_lines(run.predictions)):
            hint = f"all predictions are {answer}: train longer (train.epochs), or with another optim.lr"
            console.print(f"\nhint: {hint}", markup=False, soft_wrap=True)


def only_answer(predictions: Sequence[Prediction]) -> str | None:
    """The label, set of labels or tag that a model gives to everything, though not everything has it."""
    said: set[str] = set()
    true: set[str] = set()
    for one in predictions:
        if "tags" in one:
            said.update(one["tags"])
            true.update(one["expected"])
        elif "labels" in one:
            said.add(", ".join(sorted(one["labels"])) or "without a label")
            true.add(", ".join(sorted(one["expected"])) or "without a label")
        elif "label" in one:
            said.add(one["label"])
            true.add(one["expected"])
    return said.pop() if len(said) == 1 and true - said else None


def data_line(config: TaskConfig, training: Examples, validation: Examples, samples: Sequence[Sample]) -> str:
    """What there is to learn from; long examples may have been taken apart, or cut."""
    num, lengths = len(training.items), np.array([len(sample.ids) for sample in samples])
    parts = f" ({len(lengths):,} parts)" if len(lengths) > num else ""
    told = (
        f"{num:,} examples{parts} to train on, {len(validation.items):,} to validate; "
        f"{lengths.mean():.1f} tokens on average, {lengths.max()} at most"
    )
    return "; ".join([told, *cut_texts(config, samples)])


def skipped(name: str, examples: Examples) -> list[str]:
    """Warnings about examples that were left out."""
    if not examples.skipped:
        return []
    first = "; ".join(examples.skipped[:3])
    return [f"{len(examples.skipped)} {name} examples have faults: {first}"]


def doubts(config: TaskConfig, training: Examples, validation: Examples) -> list[str]:
    """Warnings about what can be done, but hardly as it was meant."""
    if validation.items or not config.validation_fraction:
        return []
    what = f"task.validation_fraction={config.validation_fraction} of {len(training.items)} examples is none"
    return [f"{what}: there will be no scores; give task.validation_paths or a greater share"]
